"""What happens beside the steps: progress, signals, divergence, and the seal on a checkpoint."""
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.run.errors import PipelineError
from pipeline.run.hashes import hash_files
from pipeline.run.outputs import write_json
from pipeline.run.progress import print_above, progress
from pipeline.run.stage import duration
from pipeline.training.checkpoints import BEST_ADAPTER, CHECKPOINT_HASHES

# What the log calls the losses of what is validated on, and how they are shown.
SHOWN_LOSSES = {"eval_loss": "validation loss", "eval_one_chunk_loss": "behind one chunk",
                "eval_replay_loss": "replay", "eval_infilling_loss": "middles",
                "eval_repository_loss": "behind pieces"}
ESTIMATE_STEPS = 10  # that the time of the rest is estimated from


class RunCallback(TrainerCallback):
    """Shows progress, stops cleanly on signals, divergence or no progress, and seals checkpoints."""

    def __init__(self, trainer: Any, checkpoint_settings: dict[str, Any], early_stopping_patience: int):
        self.trainer, self.checkpoint_settings = trainer, checkpoint_settings
        self.early_stopping_patience = early_stopping_patience
        self.signal: int | None = None
        self.previous_handlers: dict[int, Any] = {}
        self.bar: Any = None
        self.shown: dict[str, str] = {}
        self.steps = 0  # of this run
        self.clock = (0.0, 0.0)  # seconds and seconds of validations, at the end of its first step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous_handlers[number] = signal.signal(number, self.remember_signal)
        if state.is_world_process_zero:
            self.bar = progress(total=state.max_steps, initial=state.global_step, unit=" steps",
                                desc="training")

    def remember_signal(self, number: int, frame: Any) -> None:
        self.signal = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            rate = f"{self.trainer.real_tokens / self.trainer.step_seconds:,.0f}"
            self.bar.set_postfix(self.shown | {"tokens/s": rate}, refresh=False)
            self.bar.update(1)
            self.correct_estimate(state)
        if args.world_size > 1:  # the processes must stop at the same step
            heard = torch.tensor(self.signal or 0, device=args.device)
            torch.distributed.all_reduce(heard, op=torch.distributed.ReduceOp.MAX)
            self.signal = int(heard) or None
        if self.signal is not None:  # a checkpoint first, then the end
            control.should_save = control.should_training_stop = True

    def correct_estimate(self, state: Any) -> None:
        """Once there are ESTIMATE_STEPS steps behind the first, which prepares kernels, say how long the rest
        will take: what was said before the run was measured on one batch."""
        self.steps += 1
        if self.steps == 1:
            self.clock = time.perf_counter(), self.trainer.validation_seconds
        left = state.max_steps - state.global_step
        if self.steps == 1 + ESTIMATE_STEPS and left:
            begun, validated = self.clock
            validated = self.trainer.validation_seconds - validated
            seconds = left * (time.perf_counter() - begun - validated) / ESTIMATE_STEPS
            if self.trainer.validations:
                a_validation = self.trainer.validation_seconds / self.trainer.validations
                seconds += a_validation * -(-left // self.trainer.args.eval_steps)
            print_above(f"step {state.global_step}/{state.max_steps}: about {duration(seconds)} to go")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        behind = len(losses) - 1 - losses.index(min(losses))  # validations since the best one
        if self.early_stopping_patience and behind >= self.early_stopping_patience:
            control.should_training_stop = True
            if state.is_world_process_zero:
                print(f"step {state.global_step}: no lower validation loss in {behind} validations: "
                      "ending early", file=sys.stderr)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None,
               **kwargs: Any) -> None:
        logs = logs or {}
        losses = [value for key, value in logs.items() if key == "loss" or key in SHOWN_LOSSES]
        if not all(map(math.isfinite, losses)):
            raise PipelineError(f"the loss is {losses[0]} at step {state.global_step}: training has "
                                "diverged; lower --learning_rate")
        for key, name in {"loss": "loss", **SHOWN_LOSSES}.items():
            if key in logs:
                self.shown[name] = f"{logs[key]:.3f}"
        if self.bar is not None:
            self.bar.set_postfix(self.shown, refresh=False)
            if "eval_loss" in logs:
                found = ", ".join(f"{name} {logs[key]:.4f}" for key, name in SHOWN_LOSSES.items()
                                  if key in logs)
                print_above(f"step {state.global_step}/{state.max_steps}: {found}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # every process writes its random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.trainer.save_best(folder / BEST_ADAPTER)
            files = hash_files(folder)
            files.pop(CHECKPOINT_HASHES, None)  # of a damaged checkpoint, whose place this one takes
            seal = {"settings": self.checkpoint_settings, "tokens_per_batch": self.trainer.tokens_per_batch,
                    "files": files}
            write_json(folder / CHECKPOINT_HASHES, seal)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        if self.bar is not None:
            self.bar.close()
