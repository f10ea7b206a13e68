"""The Trainer: one batch is one optimizer step, cut into what the memory holds."""
import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from pipeline.data.encoded_examples import EncodedExamples
from pipeline.model.device import MemoryMayEnd, choose_device, release_memory
from pipeline.model.padding import IGNORED_LABEL, right_padded
from pipeline.run.errors import PipelineError, first_line
from pipeline.training.batches import StepSampler, row_length, token_batches
from pipeline.training.lora import all_fused, checkpoint_activations, evaluation_mode
from pipeline.training.loss import sum_of_losses
from pipeline.training.training_data import Data

CHECKPOINTS_KEPT = 2


class StepLoader(torch.utils.data.DataLoader):
    """The examples of one optimizer step at a time, the same in every process."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class CompletionTrainer(Trainer):
    """One Trainer batch is one optimizer step; `training_step` cuts it into batches of `tokens_per_batch`.

    So the step is the same on every device, and what a batch may hold is a matter of memory alone.  Several
    processes read the same step and take every n-th of its examples each.
    """

    def __init__(self, *args: Any, pad_token_id: int, also: dict[str, EncodedExamples], **kwargs: Any):
        super().__init__(*args, data_collator=list, **kwargs)
        if self.args.device.type != "cpu" and all_fused(self.model):
            compute_as_loaded(self.accelerator)
        self.pad_token_id, self.also = pad_token_id, also
        self.tokens_per_batch = 0  # set before training
        self.real_tokens = self.padded_tokens = 0  # the latter of this process
        self.step_seconds = self.validation_seconds = 0.0
        self.validations = 0
        # of the best validation behind the first step, once there is one: also "step" and "weights"
        self.best: dict[str, Any] = {"loss": math.inf}

    def get_train_dataloader(self) -> StepLoader:
        sampler = StepSampler(self.train_dataset.lengths, self.args.train_batch_size, self.args.seed)
        return StepLoader(self.train_dataset, batch_sampler=sampler, collate_fn=list)

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> None:
        return None  # counted in _step

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def measure(self, rows: list) -> tuple[float, float]:
        """Return what one token of a batch of `rows` takes: bytes, and seconds.

        On a GPU the bytes are those of the peak of forward and backward pass, elsewhere those that are kept
        in between.

        Weights, gradients and the random state are left as they were.  Where the rows do not fit into memory,
        fewer are taken.
        """
        with self.forward_as_trained():
            while True:
                with MemoryMayEnd():
                    return self._measure(rows)
                if len(rows) == 1:
                    self.keep_less(rows)
                rows = rows[:max(1, len(rows) // 2)]
                self.model.zero_grad()
                release_memory()

    @contextlib.contextmanager
    def forward_as_trained(self) -> Iterator[None]:
        """Within the block, the model's forward pass is the one that training will have, with its
        precision."""
        self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        try:
            yield
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
            del self.model._is_accelerate_prepared  # else it would not be prepared for training

    def keep_less(self, rows: list) -> None:
        """Turn gradient checkpointing on, as one of `rows` alone does not fit.

        Raises PipelineError where it is on already.
        """
        longest, model = max(map(row_length, rows)), self.accelerator.unwrap_model(self.model)
        if model.is_gradient_checkpointing:
            raise PipelineError(f"one example of {longest} tokens does not fit into the device's memory, "
                                "even with --gradient_checkpointing; lower --sequence_tokens and "
                                "--max_length")
        checkpoint_activations(model)
        print(f"out of memory with one example of {longest} tokens: going on with --gradient_checkpointing",
              file=sys.stderr)

    def _measure(self, rows: list) -> tuple[float, float]:
        batch = right_padded(rows, self.pad_token_id, self.args.device)
        model, kept, seconds = self.model.train(), {}, 0.0
        weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        on_gpu = self.args.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        with torch.random.fork_rng(devices=[self.args.device] if on_gpu else []):
            for _ in range(2):  # the first time prepares kernels and caches
                kept.clear()
                begun = time.perf_counter()
                hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
                with hooks:
                    loss = sum_of_losses(model, model.get_base_model(), batch)
                loss.backward()
                loss.item()  # waits for the device
                seconds = time.perf_counter() - begun
                model.zero_grad()
        tokens = batch["input_ids"].numel()
        taken = torch.cuda.max_memory_allocated() - before if on_gpu else sum(kept.values())
        return taken / tokens, seconds / tokens

    def training_step(self, model: Any, inputs: list, num_items_in_batch: Any = None) -> Any:
        model.train()
        while True:
            with MemoryMayEnd():
                return self._step(model, inputs)
            longest = max(map(row_length, inputs))
            if self.args.world_size > 1:  # the other processes are ahead already
                raise PipelineError(f"--tokens_per_batch {self.tokens_per_batch}: does not fit into the "
                                    "device's memory; go on with half of it, or with "
                                    "--gradient_checkpointing, and --resume")
            if self.tokens_per_batch <= longest:
                self.keep_less(inputs)
            else:
                self.tokens_per_batch = max(longest, self.tokens_per_batch // 2)
                print(f"out of memory: going on with --tokens_per_batch {self.tokens_per_batch}",
                      file=sys.stderr)
            model.zero_grad()  # the whole step is taken again: nothing is lost and nothing counts twice
            release_memory()

    def _step(self, model: Any, step: list) -> Any:
        begun = time.perf_counter()
        device, causal_model = self.args.device, self.accelerator.unwrap_model(model).get_base_model()
        labels = sum(len(row["labels"]) - row["labels"].count(IGNORED_LABEL) for row in step)
        rows = sorted(step, key=row_length, reverse=True)[self.args.process_index::self.args.world_size]
        total = torch.zeros((), device=device)
        batches = list(token_batches(rows or step[:1], self.tokens_per_batch))
        for number, members in enumerate(batches, start=1):
            batch = right_padded(members, self.pad_token_id, device)
            with contextlib.nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                # Data parallelism averages gradients over the processes: times their number, it sums them.
                # A process without an example of its own takes part with a weight of 0.
                weight = self.args.world_size * bool(rows) / labels
                loss = sum_of_losses(model, causal_model, batch) * weight
                self.accelerator.backward(loss)
            total += loss.detach()
        total.item()  # waits for the device, so that the time measured is that of the work
        self.real_tokens += sum(len(row["input_ids"]) for row in step)
        self.padded_tokens += sum(len(b) * len(b[0]["input_ids"]) for b in batches)
        self.step_seconds += time.perf_counter() - begun
        return total

    def mean_loss(self, model: Any, examples: EncodedExamples) -> float:
        """Return the mean loss over all labels of the examples, in nats; the processes share the work."""
        rows = [examples[i] for i in range(self.args.process_index, len(examples), self.args.world_size)]
        sums, labels = [torch.zeros((), device=self.args.device)], 0
        for members in token_batches(rows, self.tokens_per_batch):
            batch = right_padded(members, self.pad_token_id, self.args.device)
            with torch.no_grad():
                sums.append(sum_of_losses(model, model.get_base_model(), batch))
            labels += len(batch["targets"])
        nats = float(sum(torch.stack(sums).tolist()))  # waits for the device once
        if self.args.world_size > 1:
            totals = torch.tensor([nats, labels], dtype=torch.float64, device=self.args.device)
            nats, labels = self.accelerator.reduce(totals, "sum").tolist()
        return nats / labels

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Log and return the losses of what is validated on; remember the best adapter."""
        begun, model = time.perf_counter(), evaluation_mode(self.accelerator.unwrap_model(self.model))
        metrics = {"eval_loss": self.mean_loss(model, self.eval_dataset)}
        metrics |= {f"eval_{name}_loss": self.mean_loss(model, examples)
                    for name, examples in self.also.items()}
        self.validation_seconds += time.perf_counter() - begun
        self.validations += 1
        self.log(metrics)
        if self.state.global_step and metrics["eval_loss"] < self.best["loss"]:
            weights = {name: p.detach().cpu().clone() for name, p in model.named_parameters()
                       if p.requires_grad}
            self.best = {"loss": metrics["eval_loss"], "step": self.state.global_step, "weights": weights}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_best(self, file: Path) -> None:
        """Write the best adapter so far, if there is one, with its step and loss."""
        if "weights" in self.best:
            save_file(self.best["weights"], file,
                      metadata={"step": str(self.best["step"]), "loss": repr(self.best["loss"])})

    def load_best(self, file: Path) -> None:
        """Read what `save_best` wrote, if it did."""
        if file.is_file():
            with safe_open(file, "pt") as stored:
                about = stored.metadata()
                weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            self.best = {"loss": float(about["loss"]), "step": int(about["step"]), "weights": weights}

    def restore_best(self) -> None:
        """Give the model the weights of the best validation."""
        with torch.no_grad():
            for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self.best["weights"][name])


def compute_as_loaded(accelerator: Any) -> None:
    """Let the model compute in the dtype of its weights, as it does without this library's autocast.

    On a GPU, autocast takes norms and powers to float32, and logits too: memory and time for what the kernels
    do within themselves.  The fused adapters choose their dtype themselves.  The loss scale of fp16 stays.
    """
    prepare_model = accelerator.prepare_model

    def prepare(*args: Any, **kwargs: Any) -> Any:
        amp, accelerator.native_amp = accelerator.native_amp, False
        try:
            return prepare_model(*args, **kwargs)
        finally:
            accelerator.native_amp = amp  # by which it knows that gradients are scaled

    accelerator.prepare_model = prepare


def training_arguments(args: argparse.Namespace, checkpoints: Path, precision: str, steps: int,
                       warmup_ratio: float) -> Any:
    """Return the Trainer's arguments; `warmup_ratio`: share of the steps in which the learning rate rises."""
    every = args.eval_steps or max(1, steps // 5)
    # the fused one takes what the loss scale overflowed as a step, and the learning rate would go on
    optimizer = "adamw_torch" if precision == "fp16" else "adamw_torch_fused"
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR",
                          str(args.output_dir.with_name(f"{args.output_dir.name}.runs")))
    settings = TrainingArguments(
        output_dir=str(checkpoints), per_device_train_batch_size=args.examples_per_step,
        num_train_epochs=args.num_train_epochs, max_steps=args.max_steps or -1,
        learning_rate=args.learning_rate, lr_scheduler_type=args.lr_scheduler_type, warmup_steps=warmup_ratio,
        max_grad_norm=1.0, weight_decay=0.0, optim=optimizer, bf16=precision == "bf16",
        fp16=precision == "fp16", use_cpu=choose_device().type == "cpu", logging_steps=args.logging_steps,
        logging_nan_inf_filter=False, eval_strategy="steps", eval_steps=every, eval_on_start=True,
        save_strategy="steps", save_steps=args.save_steps or every, save_total_limit=CHECKPOINTS_KEPT,
        report_to=args.report_to, disable_tqdm=True, seed=args.seed, data_seed=args.seed,
        remove_unused_columns=False, dataloader_pin_memory=False, push_to_hub=False,
        ddp_find_unused_parameters=False)
    if settings.n_gpu > 1:  # several in one process would each get a step of their own (DataParallel)
        settings._n_gpu = 1
    return settings


def make_trainer(args: argparse.Namespace, settings: Any, model: Any, data: Data, pad_token_id: int) -> Any:
    """Return the Trainer of this run, without the library's own displays.

    Raises PipelineError where a tracker cannot start.
    """
    try:
        trainer = CompletionTrainer(model=model, args=settings, train_dataset=data.train,
                                    eval_dataset=data.validation, also=data.also,
                                    pad_token_id=pad_token_id)
    except (ImportError, RuntimeError, ValueError) as error:
        if args.report_to == ["none"]:
            raise
        raise PipelineError(f"--report_to {' '.join(args.report_to)}: {first_line(error)}") from error
    for unwanted in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(unwanted)
    return trainer
