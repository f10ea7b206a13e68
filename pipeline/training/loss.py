"""The loss: logits at labelled positions alone, whose gradient takes their place."""
import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.models import IGNORED_LABEL

LOSS_BLOCK_ROWS = 128  # rows of logits that are in float32 at one time; more leave a CPU's cache


@contextlib.contextmanager
def head_only_at(model: Any, positions: Any) -> Iterator[None]:
    """Within the block, the output head of `model` sees only the `positions` (batch, tokens; boolean).

    The model's logits are then (positions that are true, vocabulary): what a forward pass spends on the head,
    which for a small model is a quarter of the work, is spent on labelled positions alone.  A hook on the
    head works for every architecture, with adapters and under data parallelism.
    """
    def select(module: Any, inputs: tuple) -> tuple:
        return (inputs[0][positions], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def sum_of_losses(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
    """Return the sum over a batch's labels of the negative log likelihood in nats, as a float32 scalar.

    `model` is what is called (it may be wrapped for data parallelism), `causal_model` the CausalLM inside.
    """
    # position i predicts i + 1
    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
    labelled = labels != IGNORED_LABEL
    with head_only_at(causal_model, labelled):
        # without an attention mask (`right_padded`), attention takes the faster of its kernels
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return CrossEntropyInPlace.apply(logits, labels[labelled])


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
                gradient.scatter_add_(1, target[:, None], gradient.new_full((len(target), 1), -1.0))
                block.copy_(gradient)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
        return ctx.saved_tensors[0].mul_(gradient), None
