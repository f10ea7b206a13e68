"""The loss: logits at labelled positions alone, whose gradient takes their place."""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.model.padding import masks_without_waiting
from pipeline.training.token_rows import head_dtype, trained_rows

HEAD_PIECE_ROWS = 2048  # labels whose logits are in memory at one time: 200 MB with 50,000 tokens in 16 bits
# Settings of models that scale or bound their logits behind the head: Gemma's, Cohere's and Granite's.
LOGITS_CHANGED_BY = ("final_logit_softcapping", "logit_scale", "logits_scaling")
LOSS_BLOCK_ROWS = 128  # rows of logits that are in float32 at one time; more leave a CPU's cache


@contextlib.contextmanager
def head_only_at(model: Any, positions: Any) -> Iterator[None]:
    """Within the block, the output head of `model` sees only the `positions` (number; of the flattened
    batch).

    The model's logits are then (positions, vocabulary): what a forward pass spends on the head, which for a
    small model is a quarter of the work, is spent on labelled positions alone.  A hook on the head works for
    every architecture, with adapters and under data parallelism.
    """
    def select(module: Any, inputs: tuple) -> tuple:
        return (inputs[0].flatten(0, 1)[positions], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def without_head(model: Any, positions: Any) -> Iterator[Any]:
    """Within the block, the output of `model` is what its head would see at the `positions`; yields the head.

    (positions, hidden size) instead of (..., vocabulary).
    """
    head = model.get_output_embeddings()
    original, of_its_own = head.forward, "forward" in vars(head)
    head.forward = lambda hidden: hidden.flatten(0, 1)[positions]
    try:
        yield original
    finally:
        del head.forward
        if of_its_own:
            head.forward = original


def head_is_last(model: Any) -> bool:
    """Return whether the model's logits are what its head gives: some scale or bound them afterwards."""
    config = model.config.get_text_config()
    return not any(getattr(config, name, None) for name in LOGITS_CHANGED_BY)


def sum_of_losses(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
    """Return the sum over a batch's labels of the negative log likelihood in nats, as a float32 scalar.

    `batch` is of `right_padded`.  `model` is what is called (it may be wrapped for data parallelism),
    `causal_model` the CausalLM inside. Memory: the logits of HEAD_PIECE_ROWS labels, however many there are.
    """
    positions, targets = batch["positions"], batch["targets"]
    # without an attention mask, attention takes the faster of its kernels
    inputs = {"input_ids": batch["input_ids"], "use_cache": False}
    with masks_without_waiting(padded=False):
        if len(targets) <= HEAD_PIECE_ROWS or not head_is_last(causal_model):
            with head_only_at(causal_model, positions):
                logits = model(**inputs).logits
            return CrossEntropyInPlace.apply(logits, targets)
        with without_head(causal_model, positions) as head:
            hidden = model(**inputs).logits
    own = causal_model.get_output_embeddings()
    return HeadAndCrossEntropy.apply(hidden, targets, head, head_dtype(own), *trained_rows(own))


class CrossEntropyInPlace(torch.autograd.Function):
    """Sum of the negative log likelihoods of `targets` (rows) under `logits` (rows, vocabulary), in float32.

    Where a gradient is wanted, softmax minus one-hot takes the place of the logits, block by block: no second
    tensor of their size is made, and only a block is in float32.  Nothing reads the logits again; should an
    operation before have kept them for its own backward pass, autograd notices the change and raises.
    """

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        total = torch.zeros((), device=logits.device)
        for block, target in zip(logits.split(LOSS_BLOCK_ROWS), targets.split(LOSS_BLOCK_ROWS), strict=True):
            log_likelihood = torch.log_softmax(block, dim=-1, dtype=torch.float32)
            total -= log_likelihood.gather(1, target[:, None]).sum()
            if ctx.needs_input_grad[0]:
                gradient = log_likelihood.exp_()
                gradient[torch.arange(len(target), device=target.device), target] -= 1
                block.copy_(gradient)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
        return ctx.saved_tensors[0].mul_(gradient), None


class HeadAndCrossEntropy(torch.autograd.Function):
    """The head and its cross-entropy together, for `hidden` (rows, hidden size): some rows at a time.

    The head is frozen, so that nothing but the gradient of `hidden` is wanted of it, and that of its rows of
    trained tokens (`trained`), if it has any: they are computed at once, and the logits of HEAD_PIECE_ROWS
    rows are gone before the next.  (The idea of Liger's fused linear cross-entropy, Hsu et al. 2024.)
    `dtype`: the head's.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, targets: Any, head: Callable[[Any], Any], dtype: Any,
                *trained: Any) -> Any:
        total, gradients = torch.zeros((), device=hidden.device), []
        of_trained = [torch.zeros_like(parameter) for parameter in trained]
        kind = hidden.device.type
        for piece, target in zip(hidden.split(HEAD_PIECE_ROWS), targets.split(HEAD_PIECE_ROWS), strict=True):
            with torch.enable_grad(), torch.autocast(kind, enabled=False):
                rows = piece.detach().to(dtype).requires_grad_(ctx.needs_input_grad[0])
                loss = CrossEntropyInPlace.apply(head(rows), target)
                if ctx.needs_input_grad[0]:
                    of_rows, *others = torch.autograd.grad(loss, (rows, *trained))
                    gradients.append(of_rows)
                    for summed, gradient in zip(of_trained, others, strict=True):
                        summed += gradient
            total += loss.detach()
        ctx.save_for_backward(*gradients)
        ctx.dtype, ctx.of_trained = hidden.dtype, of_trained
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
        return (torch.cat(ctx.saved_tensors).to(ctx.dtype) * gradient, None, None, None,
                *(summed * gradient for summed in ctx.of_trained))
