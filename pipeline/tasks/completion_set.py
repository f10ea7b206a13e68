"""The completion set: the pairs of the test split, given one chunk or more of their file."""
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.data.datasets import draw, load_examples, load_files
from pipeline.hub.client import find_manifest
from pipeline.prompts.contexts import Cut, FileTexts, find_cuts
from pipeline.prompts.prompter import CHARACTERS_KEPT, Place, PromptTokens
from pipeline.run.errors import PipelineError
from pipeline.tasks.task import (
    SUFFIX_KEPT,
    Cursor,
    DataSource,
    Example,
    Task,
    first_line,
    fold_white_space,
    show_prompts,
)

DEFAULT_CHUNK_TOKENS = 100


def chunk_tokens(dataset: str) -> int:
    """Return the length of a data set's chunks by its manifest; else the default of stage 2, with a note."""
    length = (find_manifest(dataset, "dataset") or {}).get("arguments", {}).get("chunk_tokens")
    if isinstance(length, int) and length > 0:
        return length
    print(f"note: --dataset {dataset}: no manifest gives the length of its chunks; the budget is "
          f"{DEFAULT_CHUNK_TOKENS} new tokens (--max_new_tokens sets another)", file=sys.stderr)
    return DEFAULT_CHUNK_TOKENS


def kotlin_task(dataset: str, sample: int, seed: int, max_new_tokens: int, context_tokens: int = 0,
                tokenizer: Any = None, verify: bool = True) -> Task | None:
    """Return the task of the data set's test split; `max_new_tokens` 0: the length of its chunks.

    `context_tokens` 0: the prompt is the pair's chunk; else at most so many tokens of the file before the
    cut, in whole lines; `tokenizer` counts those that reports show.  None, with a note, if the data set has
    no files for that.  `verify`: check the data set against its manifest.
    """
    data = load_examples(dataset, ("test",), verify)["test"]
    if not len(data):
        raise PipelineError(f"--dataset {dataset}: its test split is empty; "
                            "run preprocess_data.py on more files")
    chosen = draw(len(data), sample, seed)
    rows = data.select(chosen)[:]
    files = load_files(dataset, ("test",))
    texts = files and FileTexts(files["test"])
    cuts = find_cuts(rows, texts)
    if context_tokens and None in cuts:
        print(f"note: --dataset {dataset}: holds no whole files; evaluated given one chunk alone, not "
              f"{context_tokens} tokens of context", file=sys.stderr)
        return None
    groups = rows.get("source_line", chosen)
    examples = [Example(str(number), prompt, fold_white_space(completion),
                        first_line(completion, fold_white_space), int(group), completion,
                        ends=cut and cut.ends_file, chunk=prompt, place=place_of(prompt, cut, context_tokens),
                        cursor=cut and Cursor(int(group), len(cut.before)))
                for number, prompt, completion, group, cut
                in zip(chosen, rows["prompt"], rows["completion"], groups, cuts, strict=True)]
    digest = hashlib.sha256()  # of the split itself: the same in a folder and on the hub
    for batch in data.select_columns(["prompt", "completion"]).iter(1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    language = texts.language() if texts else "Kotlin"
    name, prompt = language, "one chunk"
    if context_tokens:
        prompt = f"{context_tokens} tokens of context"
        name = f"{name}, {prompt}"
    dataset_name = Path(dataset).name if Path(dataset).is_dir() else dataset
    task = Task(name, examples, max_new_tokens or chunk_tokens(dataset), fold_white_space, None,
                {"data_hash": digest.hexdigest(), "prompt": prompt, "stop": "end of text"},
                DataSource(dataset_name, language, texts), PromptTokens(context_tokens))
    if context_tokens:
        befores = json.dumps([example.place.before for example in examples])
        task.settings["context_hash"] = hashlib.sha256(befores.encode()).hexdigest()
        show_prompts(task, tokenizer)
    return task


def place_of(prompt: str, cut: Cut | None, context_tokens: int) -> Place:
    """Return the place of a pair, with as much of its file as its prompts may need; with `context_tokens` 0,
    the text before it is the pair's own prompt."""
    before = cut.before[-CHARACTERS_KEPT * context_tokens:] if context_tokens else prompt
    return Place(before, cut and cut.after[:CHARACTERS_KEPT * SUFFIX_KEPT])
