"""The loss of each reference given its prompt."""
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.decoding.kv_cache import rows_can_leave
from pipeline.evaluation.predictions import DECODING_KEYS
from pipeline.evaluation.processes import ALONE, Processes
from pipeline.evaluation.rows import complete_rows, prediction_file
from pipeline.model.device import max_positions
from pipeline.model.model_source import ModelSource
from pipeline.model.padding import left_padded
from pipeline.prompts.prompter import Prompter
from pipeline.tasks.task import Task

LOSS_BATCH_TOKENS = 4096  # a batch of the loss, padding included


def batch_losses(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """Return (nats, tokens) for each (prompt, completion) in token ids: the completion's log loss and length.

    Rows are padded on the left: completions then end at the same column, and only the last columns pass
    through the head. Where a row is longer than the model's context, the prompt loses its beginning, and then
    the completion its end.
    """
    if len(rows) > 1 and not rows_can_leave(model):  # nor be padded
        return [batch_losses(model, [row])[0] for row in rows]
    context = max_positions(model.config) or sys.maxsize
    ends = [len(completion[:context - 1]) for _, completion in rows]
    texts = [prompt[-(context - end):] + completion[:end]
             for (prompt, completion), end in zip(rows, ends, strict=True)]
    inputs, width = left_padded(texts, 0, model.device), max(ends)
    ids, longest = inputs["input_ids"], max(map(len, texts))
    # (rows, width, vocabulary); not every model leaves the other columns out
    logits = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, -width - 1:-1]
    nats = torch.stack([torch.nn.functional.cross_entropy(logits[i, width - end:].float(),
                                                          ids[i, longest - end:], reduction="sum")
                        for i, end in enumerate(ends)])
    return list(zip(nats.tolist(), ends, strict=True))  # a GPU is waited for once


def reference_losses(source: ModelSource, model: Callable[[], Any], prompter: Prompter, task: Task,
                     header: dict[str, Any], folder: Path,
                     processes: Processes = ALONE) -> list[tuple[float, int]]:
    """Return (nats, tokens) of each example's reference, reused from the file of an earlier run where
    possible.

    `header` is that of the predictions; the losses depend on all of it but DECODING_KEYS.
    """
    header = {"loss": "reference", "tokens": "of the running text", "batch_tokens": LOSS_BATCH_TOKENS,
              **{key: value for key, value in header.items() if key not in DECODING_KEYS}}
    file = prediction_file(folder, source, task, header).with_suffix(".losses.jsonl")
    rows = list(zip(*prompter.pairs(task.places(), [example.completion for example in task.examples]),
                    strict=True))
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: (lengths[i], i)):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > LOSS_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)

    def make(batch: list[int]) -> list[dict[str, Any]]:
        return [{"nats": nats, "tokens": tokens}
                for nats, tokens in batch_losses(model(), [rows[i] for i in batch])]

    what = f"loss of {Path(source.name).name} on {task.name}"
    losses = complete_rows(file, header, batches, task, make, what, processes)
    return [(row["nats"], row["tokens"]) for row in losses]
