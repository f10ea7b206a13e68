"""Steps and batches: which examples come together, in which order."""
import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.data.encoded_examples import EncodedExamples
from pipeline.model.device import available_memory, choose_device, torch_dtype
from pipeline.model.tokenizers import model_errors
from pipeline.run.errors import PipelineError
from pipeline.run.stage import note
from pipeline.training.checkpoints import CHECKPOINT_HASHES

LENGTH_POOL_STEPS = 50  # steps whose examples are sorted by length together
PROBE_ROWS = 4  # examples that memory and time are measured on before training
# Share of the free memory that --tokens_per_batch auto plans with.  On a GPU, the peak of a step is measured,
# and the moments of the optimizer are still to come; elsewhere, the backward pass needs as much again.
MEMORY_SHARE = {"cuda": 0.8, "mps": 0.5, "cpu": 0.5}
# Share of the free memory that a model in 16 bits may take under --quantization auto: the rest is for
# adapters, their gradients and moments, and what a batch keeps.
WEIGHTS_SHARE = 0.5
# On a CPU more is slower (perf/log/training.md).
MOST_TOKENS_PER_BATCH = {"cuda": 32_768, "mps": 8192, "cpu": 2048}
# In a short run many small steps learn more from the same tokens than few large ones (perf/log/recipes.md).
STEPS_WANTED = 300
MOST_EXAMPLES_PER_STEP = 16


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


def plan_steps(args: argparse.Namespace, examples: int) -> int:
    """Set --examples_per_step where it was left open; return the steps of the run on so many examples."""
    args.examples_per_step = choose_examples_per_step(args, examples)
    steps_an_epoch = math.ceil(examples / args.examples_per_step)
    return args.max_steps or math.ceil(steps_an_epoch * args.num_train_epochs)


def choose_examples_per_step(args: argparse.Namespace, examples: int) -> int:
    """Return the examples of a step: what is asked for, or, of `examples` an epoch, as many as leave
    STEPS_WANTED steps, and MOST_EXAMPLES_PER_STEP at most."""
    if args.examples_per_step:
        return args.examples_per_step
    if args.max_steps:
        return MOST_EXAMPLES_PER_STEP  # their number does not fall with it
    return min(MOST_EXAMPLES_PER_STEP, max(1, int(examples * args.num_train_epochs / STEPS_WANTED)))


def tell_idle(examples_per_step: int, processes: int) -> None:
    """Say so where a step has fewer examples than there are processes."""
    if examples_per_step < processes:
        note(f"a step of {examples_per_step} leaves {processes - examples_per_step} of the {processes} "
             f"processes idle; --examples_per_step {processes} gives each one example")


def choose_tokens_per_batch(args: argparse.Namespace, resume_from: Path | None, bytes_per_token: float,
                            longest: int, free: int) -> int:
    """Return the padded tokens of a batch: what is asked for, or as many as the free memory takes.

    A resumed run keeps to the value of the run before: sums of other batches are rounded otherwise.
    """
    if args.tokens_per_batch != "auto":
        return args.tokens_per_batch
    if resume_from:
        return json.loads((resume_from / CHECKPOINT_HASHES).read_bytes())["tokens_per_batch"]
    kind = choose_device().type
    return max(longest, min(MOST_TOKENS_PER_BATCH[kind], int(MEMORY_SHARE[kind] * free / bytes_per_token)))


@dataclass
class Plan:
    """What a run was planned with: measured on the longest examples, before it begins."""
    free: int  # bytes, with the model loaded
    bytes_per_token: float  # as `CompletionTrainer.measure` has it
    seconds_per_token: float


def choose_quantization(args: argparse.Namespace, precision: str, processes: int) -> str:
    """Return nf4 or none: --quantization, or by the free memory of the first process's device.

    Raises PipelineError where the device has no 4 bits.
    """
    on_mac = choose_device().type == "mps"
    if args.quantization == "nf4" and on_mac:
        raise PipelineError("--quantization nf4: is not for Apple's GPU; give --quantization none, and a "
                            "model that fits its memory")
    if args.quantization != "auto" or on_mac:
        return "nf4" if args.quantization == "nf4" else "none"
    with model_errors(args.model_name_or_path), torch.device("meta"):
        config = AutoConfig.from_pretrained(args.model_name_or_path, revision=args.model_revision,
                                            trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    weights = torch_dtype(precision).itemsize * sum(parameter.numel() for parameter in model.parameters())
    free = available_memory()
    chosen = ["none" if weights <= WEIGHTS_SHARE * free else "nf4"]
    if processes > 1:  # another's memory may be another
        torch.distributed.broadcast_object_list(chosen)
    return chosen[0]


def plan_batches(trainer: Any, examples: EncodedExamples, args: argparse.Namespace,
                 resume_from: Path | None) -> Plan:
    """Measure what the longest examples take, and set `tokens_per_batch` by it."""
    free = available_memory()
    longest = np.argsort(examples.lengths, kind="stable")[::-1][:PROBE_ROWS]
    bytes_per_token, seconds_per_token = trainer.measure([examples[i] for i in longest])
    trainer.tokens_per_batch = choose_tokens_per_batch(args, resume_from, bytes_per_token,
                                                       int(examples.lengths.max()), free)
    return Plan(free, bytes_per_token, seconds_per_token)
