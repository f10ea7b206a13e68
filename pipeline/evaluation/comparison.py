"""Both models on all sets: what they write, the loss of what they should have written, and the scores."""
import argparse
import functools
import gc
from dataclasses import replace
from typing import Any

import numpy as np
import rapidfuzz
import sacrebleu
import torch
import transformers

from pipeline.data.datasets import load_examples, load_methods
from pipeline.decoding.vllm_engine import VLLM_PROMPTS, generate_with_vllm, load_vllm
from pipeline.evaluation.baselines import against_baselines
from pipeline.evaluation.candidates import load_model
from pipeline.evaluation.losses import reference_losses
from pipeline.evaluation.predictions import predict, prediction_header
from pipeline.evaluation.processes import Processes
from pipeline.fim.fim_set import task_of
from pipeline.model.device import release_memory
from pipeline.model.model_source import ModelSource
from pipeline.model.tokenizers import encode_plain, tokenizer_identity
from pipeline.scoring.parsing import parses
from pipeline.scoring.scores import LOSS, PARSES, Scores, compare
from pipeline.tasks.task import Task

Predictions = dict[tuple[int, str], list[str]]  # by number of the model and name of the set
Ended = dict[tuple[int, str], list[bool]]
Losses = dict[tuple[int, str], list[tuple[float, int]]]  # (nats, tokens) of each reference


def evaluate(sources: list[ModelSource], tasks: list[Task], args: argparse.Namespace, precision: str,
             device: str, tokenizers: list[Any], processes: Processes) -> tuple[Predictions, Ended, Losses]:
    """Return each model's predictions, whether they ended by themselves, and the loss of each reference.

    Both come from files in --output_dir as far as these go.  Of several processes, only the first gets them.
    """
    predictions: Predictions = {}
    ended: Ended = {}
    losses: Losses = {}
    folder = args.output_dir / "predictions"
    # each model is loaded where it is needed first, and let go before the next
    models = [functools.cache(lambda source=source: load_model(source, sources[0], precision))
              for source in sources]
    asked = [[task_of(task, source) for task in tasks] for source in sources]
    headers = [{task.name: prediction_header(task, source, sources[0], args, precision, device, tokenizer)
                for task in own} for own, source, tokenizer in zip(asked, sources, tokenizers, strict=True)]

    def write(which: int, writer: Any, **how: Any) -> None:
        for task in asked[which]:
            predictions[which, task.name], ended[which, task.name] = predict(
                sources[which], writer, tokenizers[which], task, headers[which][task.name], folder,
                args.batch_size, processes=processes, **how)

    def weigh(which: int) -> None:
        for task in asked[which]:
            losses[which, task.name] = reference_losses(
                sources[which], models[which], tokenizers[which], task, headers[which][task.name], folder,
                processes)

    for which, model in enumerate(models):
        if args.engine == "transformers":
            write(which, model)
        weigh(which)
        model.cache_clear()
    if args.engine == "vllm":  # it takes nearly all of the GPU's memory: behind all else
        release_memory()
        for which, source in enumerate(sources):
            writer = functools.cache(lambda source=source: load_vllm(source, precision))
            write(which, writer, generate=generate_with_vllm, prompts_a_call=VLLM_PROMPTS)
            writer.cache_clear()
            gc.collect()  # its process ends with it
    return predictions, ended, losses


def signature(task: Task, args: argparse.Namespace, precision: str, same_tokenizer: bool = True) -> str:
    """Return the settings of a score on one line."""
    return "|".join([f"data:{task.dataset}", f"n:{len(task.examples)}",
                     *(f"{key}:{value[:16] if 'hash' in key or 'sha' in key else value}"
                       for key, value in task.settings.items() if key != "file"),
                     *([] if same_tokenizer else ["tokens:each model's own"]),
                     f"budget:{task.max_new_tokens}", "decoding:greedy", f"precision:{precision}",
                     f"batch:{args.batch_size if args.engine == 'transformers' else args.engine}",
                     f"seed:{args.seed}",
                     f"similarity:rapidfuzz-{rapidfuzz.__version__}",
                     f"chrF:sacrebleu-{sacrebleu.__version__}",
                     f"transformers:{transformers.__version__}", f"torch:{torch.__version__}"])


def summarize_change(change: np.ndarray) -> dict[str, Any]:
    """Return how many examples became better, stayed and became worse, and quantiles of the change."""
    percents = (0, 5, 25, 50, 75, 95, 100)
    return {"better": int((change > 0).sum()), "equal": int((change == 0).sum()),
            "worse": int((change < 0).sum()),
            "quantiles": dict(zip(map(str, percents), np.percentile(change, percents).round(2).tolist(),
                                  strict=True))}


def train_split(task: Task, dataset: str) -> Any:
    """Return what a training set has of the kind that a task asks for, as prompts and completions, or
    None."""
    if not task.language:
        return None
    if task.methods:
        methods = load_methods(dataset, "train")
        return methods and methods.rename_columns({"signature": "prompt", "body": "completion"})
    return load_examples(dataset, (), verify=False, optional=("train",)).get("train")


def with_parts(tasks: list[Task], *found: dict[tuple[int, str], list]) -> list[Task]:
    """Return the tasks, each followed by its parts as tasks of their own; what was `found` of a task, by
    model and name, is filled in for its parts."""
    every = []
    for task in tasks:
        every.append(task)
        for name, places in task.parts.items():
            every.append(replace(task, name=name, examples=[task.examples[i] for i in places], parts={},
                                 asked=[]))
            for results in found:
                for which in (0, 1):
                    results[which, name] = [results[which, task.name][i] for i in places]
    return every


def score_set(task: Task, predictions: list[list[str]], ended: list[list[bool]],
              losses: list[list[tuple[float, int]]], tokenizers: list[Any], args: argparse.Namespace,
              precision: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return what metrics.json says of a set, and the change of each example's edit similarity.

    Of each list, what belongs to the base comes first.  Where the tokenizers differ, the scores that count
    tokens are left out: the loss a byte can be compared.
    """
    def lengths(tokenizer: Any, texts: list[str]) -> list[int]:
        return [len(ids) for ids in encode_plain(tokenizer, texts)]

    same = tokenizer_identity(tokenizers[0]) == tokenizer_identity(tokenizers[1])
    completions = [example.completion for example in task.examples]
    *parsed, of_references = parses(task, [*predictions, completions],
                                    [*ended, [bool(example.ends) for example in task.examples]])
    models = [Scores(task, texts, lengths(tokenizer, texts) if same else None,
                     nats if same else [(nats, np.nan) for nats, _ in nats], ends, found)
              for texts, ends, nats, tokenizer, found in zip(predictions, ended, losses, tokenizers, parsed,
                                                             strict=True)]
    cells, change = compare(*models, args.seed), models[1].similarity - models[0].similarity
    references = lengths(tokenizers[0], completions)
    entry = {"examples": len(task.examples), "signature": signature(task, args, precision, same),
             "scores": cells, "reference_length": round(float(np.mean(references)), 4),
             "change": summarize_change(change)}
    ends = [example.ends for example in task.examples]
    if None not in ends:
        entry["reference_ended"] = round(100 * float(np.mean(ends)), 4)
    if PARSES in cells:
        known = [found for found in of_references if found is not None]
        entry["reference_parses"] = round(100 * float(np.mean(known)), 4)
    if LOSS in cells:
        entry["perplexity"] = {key: np.exp(cells[LOSS][key]).round(4).tolist()
                               for key in ("base", "base_interval", "fine_tuned", "fine_tuned_interval")}
    if args.baselines:
        entry["baselines"] = against_baselines(task, models, train_split(task, args.dataset), args.seed)
    return entry, change
