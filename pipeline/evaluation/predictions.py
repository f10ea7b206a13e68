"""A model's prediction for each example, reused from the file of an earlier run."""
import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.decoding.greedy import (
    BATCH_TOKENS,
    PREFILL_PADDING,
    generate_batch,
    generate_within_memory,
    plan_batches,
)
from pipeline.evaluation.candidates import Candidate
from pipeline.evaluation.processes import ALONE, Processes
from pipeline.evaluation.rows import complete_rows, note_other_settings, prediction_file
from pipeline.model.model_source import ModelSource
from pipeline.model.tokenizers import tokenizer_identity
from pipeline.prompts.prompter import Prompter
from pipeline.tasks.task import Task

# of a header: what only the predictions depend on, and not the losses of the references
DECODING_KEYS = ("max_new_tokens", "decoding", "engine", "batch_size", "batch_tokens", "prefill_padding")


def predict(source: ModelSource, model: Callable[[], Any], prompter: Prompter, task: Task,
            header: dict[str, Any], folder: Path, batch_size: int,
            generate: Callable[..., list[dict[str, Any]]] = generate_batch, processes: Processes = ALONE,
            prompts_per_call: int = 0) -> tuple[list[str], list[bool]]:
    """Return the raw prediction of every example, reused from the file of an earlier run where possible,
    and whether it ended by itself.

    `model` loads the model, and is called only if something is missing.  `prompts_per_call`: for an engine
    that makes its own batches; so many are written to the file at a time.
    """
    prompts = prompter.prompts(task.places())
    file, at_most = prediction_file(folder, source, task, header), prompts_per_call or batch_size
    if processes.rank == 0:
        note_other_settings(file, header)

    def decode(part: list[list[int]]) -> list[dict[str, Any]]:
        return generate(model(), prompter.tokenizer, part, task, prompter.stops)

    def make(batch: list[int]) -> list[dict[str, Any]]:
        nonlocal at_most
        results, at_most = generate_within_memory(decode, [prompts[i] for i in batch], at_most)
        return [{"prediction": result["text"], "normalized": task.normalize(result["text"]),
                 "reference": task.examples[i].reference, "tokens": result["tokens"],
                 "ended": result["ended"], "rows": result["rows"]}
                for i, result in zip(batch, results, strict=True)]

    batches = plan_batches([len(p) for p in prompts], batch_size, task.max_new_tokens)
    if prompts_per_call:
        positions = list(range(len(prompts)))
        batches = [positions[i:i + prompts_per_call] for i in range(0, len(positions), prompts_per_call)]
    what = f"{Path(source.name).name} on {task.name}"
    rows = complete_rows(file, header, batches, task, make, what, processes)
    return [row["prediction"] for row in rows], [row["ended"] for row in rows]


def prediction_header(task: Task, candidate: Candidate, base: ModelSource, args: argparse.Namespace,
                      precision: str, device: str) -> dict[str, Any]:
    """Return all that a model's predictions on a set depend on: the first line of their file."""
    source = candidate.source
    fim = {"fim": candidate.forms.describe_fim()} if task.tokens.suffix else {}
    return {"model": source.identity, "base_model": base.identity if source.adapter else None,
            "tokenizer": tokenizer_identity(candidate.tokenizer), "set": task.name,
            "examples": [example.id for example in task.examples], **task.settings, **fim,
            "max_new_tokens": task.max_new_tokens, "decoding": "greedy", "engine": args.engine,
            "precision": precision, "batch_size": args.batch_size if args.engine == "transformers" else None,
            "batch_tokens": BATCH_TOKENS,
            "prefill_padding": PREFILL_PADDING, "device": device.split(",")[0],  # not the number of threads
            "torch": torch.__version__, "transformers": transformers.__version__}
