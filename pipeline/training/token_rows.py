"""Trained embeddings of a few tokens: rows that take the place of the frozen embedding's, and of the head's
where that is tied to it."""
from typing import Any

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer


def fuse_token_rows(model: Any) -> None:
    """Let PEFT's layers with trained tokens replace a part of their output instead of copying the matrix.

    PEFT puts the rows into a copy of the embedding at every call, whose gradient is again as large as the
    matrix.  Here the frozen layer computes, and what belongs to the trained tokens is replaced: vectors
    behind an embedding, columns of the logits behind a head.  Other kinds of layers are left to PEFT.
    """
    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            for rows in layer.trainable_tokens_delta.values():  # 16 bits would lose the optimizer's steps
                rows.data = rows.data.float()
            kind = type(layer.get_base_layer())
            if kind in FUSED:
                FUSED[kind](layer)


def _fuse_embedding(layer: Any) -> None:
    peft_forward, base = layer.forward, layer.get_base_layer()

    def forward(x: Any) -> Any:
        if layer.disable_adapters or layer.merged:
            return peft_forward(x)
        [name] = layer.active_adapters
        result = base(x)
        for row, token in zip(layer.trainable_tokens_delta[name], layer.token_indices[name], strict=True):
            result = torch.where((x == token)[..., None], row.to(result.dtype), result)
        return result

    layer.forward = forward


def _fuse_head(layer: Any) -> None:
    peft_forward, base = layer.forward, layer.get_base_layer()
    columns_on: dict[Any, Any] = {}  # by device: brought there once, as no call is to wait for it

    def forward(x: Any) -> Any:
        if layer.disable_adapters or layer.merged:
            return peft_forward(x)
        [name] = layer.active_adapters
        rows = layer.trainable_tokens_delta[name]
        logits = base(x)
        if logits.device not in columns_on:
            with torch.inference_mode(False):  # a tensor made within could not be learned with later
                columns_on[logits.device] = torch.tensor(layer.token_indices[name], device=logits.device)
        columns = columns_on[logits.device]
        own = torch.nn.functional.linear(x, rows.to(x.dtype)).to(logits.dtype)
        return logits.index_copy_(-1, columns, own)

    layer.forward = forward


FUSED = {torch.nn.Embedding: _fuse_embedding, torch.nn.Linear: _fuse_head}


def head_dtype(head: Any) -> Any:
    """Return the dtype of a head's frozen weight, whether rows of it are trained or not."""
    adapter = getattr(head, "token_adapter", None)
    return next((adapter.get_base_layer() if adapter else head).parameters()).dtype


def trained_rows(head: Any) -> list[Any]:
    """Return the parameters of a head that are trained: its rows that are tied to an embedding's."""
    return [parameter for parameter in head.parameters() if parameter.requires_grad]
