"""Steps and batches: which examples come together, in which order."""
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

LENGTH_POOL_STEPS = 50  # steps whose examples are sorted by length together


def step_order(lengths: np.ndarray, examples_per_step: int, seed: int, epoch: int) -> list[int]:
    """Return the order of the examples in one epoch: steps of like length, in random order.

    The examples are shuffled, sorted by length within pools of LENGTH_POOL_STEPS steps, and the steps are
    shuffled again.  The last step of the epoch is the one that may be short.  The arguments alone determine
    the order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    full = len(order) // examples_per_step * examples_per_step
    pool = LENGTH_POOL_STEPS * examples_per_step
    pools = [order[i:min(i + pool, full)] for i in range(0, full, pool)]
    steps = [step for members in pools
             for step in members[np.argsort(lengths[members], kind="stable")].reshape(-1, examples_per_step)]
    ordered = [steps[i] for i in generator.permutation(len(steps))] + [order[full:]]
    return np.concatenate(ordered).tolist()


class StepSampler:
    """Yields the indices of one step after the other, in `step_order`.

    The Trainer calls `set_epoch`, so that a resumed run sees the same.
    """

    def __init__(self, lengths: np.ndarray, examples_per_step: int, seed: int):
        self.lengths, self.examples_per_step, self.seed, self.epoch = lengths, examples_per_step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.examples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = step_order(self.lengths, self.examples_per_step, self.seed, self.epoch)
        return (order[i:i + self.examples_per_step] for i in range(0, len(order), self.examples_per_step))


def row_length(row: dict[str, list[int]]) -> int:
    """Return the tokens of an example."""
    return len(row["input_ids"])


def token_batches(rows: list[Any], tokens_per_batch: int,
                  length: Callable[[Any], int] = row_length) -> Iterator[list]:
    """Yield the rows in batches of at most `tokens_per_batch` padded tokens, rows times longest row.

    Rows of like length come together, the longest first.  A row longer than the budget is a batch of its own.
    """
    batch: list[Any] = []
    for row in sorted(rows, key=lambda r: -length(r)):
        if batch and (len(batch) + 1) * length(batch[0]) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def real_token_share(lengths: np.ndarray, examples_per_step: int, processes: int, tokens_per_batch: int,
                     seed: int) -> float:
    """Return the share of real tokens, not padding, among those that the first epoch will compute."""
    order, padded = lengths[step_order(lengths, examples_per_step, seed, 0)], 0
    for start in range(0, len(order), examples_per_step):
        step = sorted(order[start:start + examples_per_step].tolist(), reverse=True)
        for process in range(processes):
            batches = token_batches(step[process::processes], tokens_per_batch, length=int)
            padded += sum(len(batch) * batch[0] for batch in batches)
    return float(lengths.sum() / padded)
