"""The loss of each reference behind its prompt."""
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.decoding.kv_cache import rows_can_leave
from pipeline.evaluation.processes import ALONE, Processes
from pipeline.evaluation.rows import complete_rows, prediction_file
from pipeline.model.device import max_positions
from pipeline.model.model_source import ModelSource
from pipeline.model.padding import left_padded
from pipeline.model.tokenizers import encode_pairs
from pipeline.prompts.fim_formats import encode_within
from pipeline.tasks.task import Task, prompt_ids, prompts_of

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


def reference_losses(source: ModelSource, model: Callable[[], Any], tokenizer: Any, task: Task,
                     header: dict[str, Any], folder: Path,
                     processes: Processes = ALONE) -> list[tuple[float, int]]:
    """Return (nats, tokens) of each example's reference, from the file of an earlier run where it has them.

    `header` is that of the predictions, of which the loss depends on a part.  Prompt and completion are
    tokenized together, as train.py does it.
    """
    keys = ("model", "base_model", "tokenizer", "set", "examples", *task.settings, "precision", "device",
            "torch", "transformers")
    header = {"loss": "reference", "tokens": "of the running text", "batch_tokens": LOSS_BATCH_TOKENS,
              **{key: header[key] for key in keys}}
    file = prediction_file(folder, source, task, header).with_suffix(".losses.jsonl")
    texts = [example.completion for example in task.examples]
    if task.encode:
        prompts, completions = prompt_ids(task, tokenizer), encode_within(tokenizer, texts)
    else:
        prompts, completions = encode_pairs(tokenizer, prompts_of(task, tokenizer), texts)
        if task.put_before:
            prompts = task.put_before(tokenizer, prompts)
    rows = [(prompt or [tokenizer.eos_token_id], completion)
            for prompt, completion in zip(prompts, completions, strict=True)]
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
    found = complete_rows(file, header, batches, task, make, what, processes)
    return [(row["nats"], row["tokens"]) for row in found]
