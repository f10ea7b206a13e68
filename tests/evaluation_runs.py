"""Runs of benchmarking.py, and tasks, prompts and scores by hand: what the tests of stage 5 share."""
import json
import random
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny_models
import torch

import benchmarking
from pipeline.evaluation.rows import unsealed_row
from pipeline.methods.block_end import BlockEnd, block_end
from pipeline.model.tokenizers import encode_prompts
from pipeline.prompts.prompter import Place, Prompter, PromptForms
from pipeline.tasks.task import DataSource, Example, StopRule, Task, first_line, fold_white_space

WORDS = [" ".join(random.Random(i).choices("abcdef", k=3 + i % 9)) for i in range(60)]


def arguments(folders: SimpleNamespace, output: Path, *more: object) -> list[str]:
    """Return the arguments of a small run; what stands in `more` comes last and wins."""
    models = ("--hf_repository", folders.merged, "--base_model", folders.base, "--precision", "float32")
    sets = ("--dataset", folders.data, "--codexglue_file", folders.codexglue, "--batch_size", 2)
    return [str(part) for part in (*models, *sets, "--output_dir", output, *more)]


def run_stage(folders: SimpleNamespace, output: Path, *more: object) -> dict[str, Any]:
    """Run the benchmark and return its metrics."""
    benchmarking.main(arguments(folders, output, "--batch_size", 3, *more))
    return json.loads((output / "metrics.json").read_text())


def with_files(folders: SimpleNamespace, folder: Path, test: int = 6,
               methods: bool = False) -> SimpleNamespace:
    """Return the folders with another data set, saved to `folder`: with whole files, of three pairs each."""
    data = tiny_models.save_dataset(folder, test=test, chunk_tokens=12, files=True, pairs_per_file=3,
                                    methods=methods)
    return SimpleNamespace(**vars(folders) | {"data": data})


@cache
def make_other_tokenizer() -> Any:
    """Return a tokenizer with a smaller vocabulary than that of the tiny models: its texts have more
    tokens."""
    tokenizer = tiny_models.make_tokenizer()
    texts = [prompt for prompt, _ in tiny_models.examples(60, seed=98)]
    return tokenizer.train_new_from_iterator(texts, vocab_size=290, show_progress=False)


def save_other_model(folder: Path) -> Path:
    """Save a tiny model that has a tokenizer of its own, and return its folder."""
    tiny_models.save_model(folder, "llama", seed=5)
    make_other_tokenizer().save_pretrained(folder)
    return folder


def prediction_files(output: Path) -> list[Path]:
    """Return the files of the predictions, without those of the losses beside them."""
    files = sorted((output / "predictions").iterdir())
    return [file for file in files if not file.name.endswith(".losses.jsonl")]


def predictions(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return {file name: its rows, the header first}; each row is the one that was written."""
    return {file.name: [unsealed_row(line) for line in file.read_bytes().splitlines()]
            for file in prediction_files(output)}


def free_task(budget: int, end: Any = lambda text: None) -> Task:
    """Return a task whose predictions go on to an end token or the budget, or to where `end` stops them."""
    return Task("Free", [], budget, fold_white_space, StopRule(end))


def block_task(budget: int) -> Task:
    """Return a task whose predictions go on to the brace that closes their block."""
    return Task("Free", [], budget, fold_white_space, StopRule(block_end, BlockEnd))


def prompter(task: Task, tokenizer: Any, fim: Any = None) -> Prompter:
    """Return what composes a model's prompts on a set, in the FIM format `fim`."""
    return Prompter(tokenizer, task.tokens, PromptForms(fim))


def contexts(task: Task, tokenizer: Any) -> list[str]:
    """Return the text of the file in each prompt of a set."""
    return prompter(task, tokenizer).contexts(task.places())


def prompts(number: int = 5) -> list[list[int]]:
    """Return prompts of various lengths, as token ids."""
    texts = [prompt * (1 + i % 3) for i, (prompt, _) in enumerate(tiny_models.examples(number, seed=8))]
    return encode_prompts(tiny_models.make_tokenizer(), texts)


def written_alone(model: Any, prompt: list[int], budget: int, **settings: Any) -> list[int]:
    """Return the tokens that transformers itself decodes after one prompt; `settings` are for generate()."""
    tokens = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=budget, pad_token_id=0,
                            **settings)
    return tokens[0, len(prompt):].tolist()


def task_of(references: list[str], groups: list[int] | None = None,
            prompts: list[str] | None = None) -> Task:
    """Return the Kotlin task of these references; without `groups`, each comes from a file of its own."""
    examples = [Example(str(i), prompts[i] if prompts else "", fold_white_space(reference),
                        first_line(reference, fold_white_space), groups[i] if groups else i, reference,
                        place=Place(prompts[i] if prompts else ""))
                for i, reference in enumerate(references)]
    return Task("Kotlin", examples, 10, fold_white_space, StopRule(lambda text: None),
                source=DataSource("data"))
