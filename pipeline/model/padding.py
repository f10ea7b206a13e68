"""What a model is fed with: rows of token ids, padded on one side."""
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import masking_utils

from pipeline.model.device import to_device

IGNORED_LABEL = -100  # torch's and transformers' mark of a position without a label


@contextlib.contextmanager
def masks_without_waiting(padded: bool) -> Iterator[None]:
    """Within the block, the library's masks do not ask the device what is known here: that no row holds two
    texts, and whether any row is `padded`.

    It reads both from the tensors at every forward pass, for which the host waits until all that went before
    is computed.  Not for models whose layers see a window of the columns: in that, padding may have ended.
    """
    asked = masking_utils.find_packed_sequence_indices, masking_utils.fast_all
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    masking_utils.fast_all = lambda mask: not padded
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, masking_utils.fast_all = asked


def right_padded(rows: list[dict[str, list[int]]], pad_token_id: int, device: Any = None) -> dict[str, Any]:
    """Return input_ids (rows, longest row), padded on the right, and what is learned from them: the
    `targets`, the labels in order, and the `positions` in the flattened input_ids that predict them, each one
    before its label.

    Both come from the rows, so that nobody asks the device for them.  Padding is marked by IGNORED_LABEL, not
    by the token's identity: an end-of-text token that doubles as the padding token stays supervised where it
    ends a completion.  There is no attention mask: padding stands behind every real token, and a causal model
    does not look there.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest)
    ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORED_LABEL)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length], labels[i, :length] = row["input_ids"], row["labels"]
    labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED_LABEL).reshape(-1)
    positions = np.flatnonzero(labels != IGNORED_LABEL)
    found = {"input_ids": ids, "positions": positions, "targets": labels[positions]}
    return {name: to_device(torch.from_numpy(values), device) for name, values in found.items()}


def left_padded(rows: list[list[int]], pad_token: int, device: Any) -> dict[str, Any]:
    """Return a model's input_ids, attention_mask and position_ids of shape (rows, longest row), padded on the
    left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_token] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    found = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
    return {name: to_device(tensor, device) for name, tensor in found.items()}
