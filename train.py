"""Stage 3 of 5: fine-tune a causal language model on (prompt, completion) examples with QLoRA.

Reads   data/kotlin_prepared_dataset/   train and validation: {"prompt": str, "completion": str}
Writes  models/adapter/                 the LoRA adapter and its tokenizer, training_curve.jsonl and .png, manifest.json
        models/adapter.checkpoints/     while it runs; removed when it has ended

The base model is quantized to 4 bits (NF4) and frozen; LoRA adapters on all of its linear layers are trained in
float32 under bf16 autocast.  The loss is taken on the completion and the end-of-text token behind it, never on the
prompt.  Prompt and completion are tokenized apart and joined, so that training sees what inference will see.  One
optimizer step holds --examples_per_step examples, whatever the device; they pass through the model in batches of at
most --tokens_per_batch tokens, padded to their own longest row.

Memory: the model, activations in proportion to --tokens_per_batch, and 4 bytes a token of the sampled examples
(100,000 examples of 200 tokens: 80 MB).  Time: linear in the tokens.

Run:    python train.py
Quick:  python train.py --model_name_or_path SMALL_MODEL --max_train_samples 200 --quantization none
"""
import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_io import (
    PipelineError,
    Terminated,
    atomic_folder,
    check_hub_write,
    check_local_model,
    check_replaceable,
    choose_precision,
    combined_hash,
    device_name,
    duration,
    encode_prompts,
    fraction,
    hash_files,
    hub_errors,
    load_examples,
    load_tokenizer,
    non_negative_int,
    output_lock,
    positive_int,
    public_arguments,
    push_folder,
    quiet_libraries,
    read_manifest,
    run_stage,
    sha256_file,
    torch_dtype,
    versions,
    write_json,
    write_manifest,
)

IGNORED_LABEL = -100  # torch's and transformers' mark of a position without a label
LOSS_BLOCK_ROWS = 512  # rows of logits that are in float32 at one time
LENGTH_POOL_STEPS = 50  # steps whose examples are sorted by length together
WARMUP_RATIO = 0.03
MIN_LENGTH = 8  # tokens of prompt, completion and end of text together
CHECKPOINT_HASHES = "pipeline_checkpoint.json"  # written last: a checkpoint without it is not whole
CHECKPOINTS_KEPT = 2
# Settings that a resumed run must share with the run that it goes on with; the others do not change what is learned.
RESUME_SETTINGS = ("model_name_or_path", "dataset", "max_train_samples", "max_validation_samples", "quantization",
                   "precision", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "learning_rate",
                   "lr_scheduler_type", "examples_per_step", "num_train_epochs", "max_steps", "max_length", "seed")


# ---------------------------------------------------------------------------------------------------------------
# Examples
# ---------------------------------------------------------------------------------------------------------------

class EncodedExamples:
    """Token ids of examples, kept in one flat int32 array: 4 bytes a token, whatever their number."""

    def __init__(self, prompts: list[list[int]], completions: list[list[int]]):
        rows = [np.array(p + c, dtype=np.int32) for p, c in zip(prompts, completions, strict=True)]
        self.ids = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)
        self.ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self.prompt_lengths = np.array([len(p) for p in prompts], dtype=np.int64)
        self.lengths = np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Return {"input_ids", "labels"}: the labels of the prompt are IGNORED_LABEL."""
        end, length, prompt = self.ends[index], self.lengths[index], self.prompt_lengths[index]
        ids = self.ids[end - length:end].tolist()
        return {"input_ids": ids, "labels": [IGNORED_LABEL] * prompt + ids[prompt:]}


def encode_examples(tokenizer: Any, prompts: list[str], completions: list[str], max_length: int) -> EncodedExamples:
    """Tokenize prompts and completions apart, and end each completion with the end-of-text token.

    The prompt is encoded as it is when the model is used (`encode_prompts`).  An example of more than `max_length` tokens loses the start
    of its prompt, which is farthest from the completion, and then the end of its completion.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    completion_ids = tokenizer(completions, add_special_tokens=False, split_special_tokens=True,
                               return_attention_mask=False)["input_ids"] if completions else []
    completion_ids = [[*ids[:max_length - 2], tokenizer.eos_token_id] for ids in completion_ids]
    prompt_ids = [p[-max(1, max_length - len(c)):] for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return EncodedExamples(prompt_ids, completion_ids)


def sample_examples(split: Any, number: int, seed: int) -> tuple[list[str], list[str]]:
    """Return prompts and completions of `number` rows of a split drawn at random with the seed; 0: all rows."""
    count = len(split)
    chosen = range(count) if number == 0 or number >= count else sorted(random.Random(seed).sample(range(count), number))
    rows = split.select(chosen)[:]
    return list(rows["prompt"]), list(rows["completion"])


def step_order(lengths: np.ndarray, examples_per_step: int, seed: int, epoch: int) -> list[int]:
    """Return the order of the examples in one epoch: steps of like length, in random order; a function of its arguments.

    The examples are shuffled, sorted by length within pools of LENGTH_POOL_STEPS steps, and the steps are
    shuffled again.  The last step of the epoch is the one that may be short.
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
    """Yields the indices of one epoch in `step_order`; the Trainer calls `set_epoch`, so that a resume sees the same."""

    def __init__(self, lengths: np.ndarray, examples_per_step: int, seed: int):
        self.lengths, self.examples_per_step, self.seed, self.epoch = lengths, examples_per_step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(step_order(self.lengths, self.examples_per_step, self.seed, self.epoch))


def token_batches(rows: list[dict[str, list[int]]], tokens_per_batch: int) -> Iterator[list[dict[str, list[int]]]]:
    """Yield the rows in batches whose padded size, rows times longest row, is at most `tokens_per_batch` tokens.

    Rows of like length come together.  A row longer than the budget is a batch of its own.
    """
    batch: list[dict[str, list[int]]] = []
    for row in sorted(rows, key=lambda r: -len(r["input_ids"])):  # the first of a batch is its longest
        if batch and (len(batch) + 1) * len(batch[0]["input_ids"]) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pad_batch(rows: list[dict[str, list[int]]], pad_token_id: int, device: Any = None) -> dict[str, Any]:
    """Return input_ids, attention_mask and labels of shape (rows, longest row), padded on the right.

    Padding is marked by the attention mask and IGNORED_LABEL, not by the token's identity: an end-of-text token
    that doubles as the padding token stays supervised where it ends a completion.
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest)
    ids, mask, labels = np.full(shape, pad_token_id), np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED_LABEL)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length], mask[i, :length], labels[i, :length] = row["input_ids"], 1, row["labels"]
    return {name: torch.from_numpy(a).to(device) for name, a in
            (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}


# ---------------------------------------------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def head_only_at(model: Any, positions: Any) -> Iterator[None]:
    """Within the block, the output head of `model` sees only the `positions` (batch, tokens; boolean).

    The model's logits are then (positions that are true, vocabulary): what a forward pass spends on the head,
    which for a small model is a quarter of the work, is spent on labelled positions alone.  A hook on the head
    works for every architecture, with adapters and under data parallelism.
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
    import torch
    from torch.utils.checkpoint import checkpoint

    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)  # position i predicts i + 1
    labelled = labels != IGNORED_LABEL
    with head_only_at(causal_model, labelled):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = labels[labelled]

    def block_loss(block: Any, target: Any) -> Any:
        return torch.nn.functional.cross_entropy(block.float(), target, reduction="sum")

    blocks = zip(logits.split(LOSS_BLOCK_ROWS), targets.split(LOSS_BLOCK_ROWS), strict=True)
    # checkpoint: the float32 copy of a block is made again in the backward pass instead of being kept
    return sum(checkpoint(block_loss, block, target, use_reentrant=False) for block, target in blocks)


# ---------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------

def load_base_model(name: str, revision: str | None, quantization: str, precision: str) -> Any:
    """Return the frozen base model; with nf4 its linear layers are quantized to 4 bits (Dettmers et al. 2023)."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch_dtype(precision)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=dtype) if quantization == "nf4" else None
    check_local_model(name)
    with hub_errors("model", name):
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, quantization_config=config, trust_remote_code=False,
            use_safetensors=True, device_map={"": 0} if torch.cuda.is_available() else None)
    model.config.use_cache = False
    return model.requires_grad_(False)


def add_adapters(model: Any, args: argparse.Namespace) -> Any:
    """Return the model with LoRA adapters (Hu et al. 2021) in float32; by default on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    targets = args.lora_target_modules
    head = next((name.rpartition(".")[2] for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    if head in targets:
        raise PipelineError(f"--lora_target_modules {head}: is the output head, which stays as it is; name other layers, or all-linear")
    config = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, use_rslora=args.use_rslora,
                        target_modules=targets[0] if targets == ["all-linear"] else targets, task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise PipelineError(f"--lora_target_modules {' '.join(targets)}: {str(error).splitlines()[0]}") from error


def evaluation_mode(model: Any) -> Any:
    """Return the model in evaluation mode, all but its NF4 layers, for which the mode means nothing else than this:

    on some CPUs bitsandbytes packs their weights for inference in evaluation mode and leaves them so; gradients no
    longer pass through them, and most adapters learn nothing (seen: bitsandbytes 0.50.2, AVX-512 with bf16).
    """
    import torch

    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and type(module).__name__ == "Linear4bit":
            module.train()
    return model


# ---------------------------------------------------------------------------------------------------------------
# The Trainer
# ---------------------------------------------------------------------------------------------------------------

def make_trainer_class() -> type:
    """Return the Trainer of this project; made in a function because importing transformers takes seconds."""
    import torch
    from transformers import Trainer

    class CompletionTrainer(Trainer):
        """One Trainer batch is one optimizer step; `training_step` cuts it into batches of `tokens_per_batch`.

        So the step is the same on every device, and what a batch may hold is a matter of memory alone.
        """

        def __init__(self, *args: Any, tokens_per_batch: int, pad_token_id: int, **kwargs: Any):
            super().__init__(*args, data_collator=list, **kwargs)
            self.tokens_per_batch, self.pad_token_id = tokens_per_batch, pad_token_id
            self.real_tokens = self.padded_tokens = 0
            self.step_seconds = 0.0

        def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
            return StepSampler(self.train_dataset.lengths, self.args.train_batch_size * self.args.world_size, self.args.seed)

        def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> None:
            return None  # counted in training_step

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        def training_step(self, model: Any, inputs: list, num_items_in_batch: Any = None) -> Any:
            model.train()
            while True:
                try:
                    return self._step(model, inputs)
                except torch.OutOfMemoryError:
                    longest = max(len(row["input_ids"]) for row in inputs)
                    if self.tokens_per_batch <= longest:
                        raise PipelineError(f"one example of {longest} tokens does not fit into the device's memory; "
                                            "lower --max_length or take a smaller model") from None
                    self.tokens_per_batch = max(longest, self.tokens_per_batch // 2)
                    model.zero_grad()  # the whole step is taken again: nothing is lost and nothing counts twice
                    torch.cuda.empty_cache()
                    print(f"out of memory: going on with --tokens_per_batch {self.tokens_per_batch}", file=sys.stderr)

        def _step(self, model: Any, rows: list) -> Any:
            begun = time.perf_counter()
            device, causal_model = self.args.device, self.accelerator.unwrap_model(model).get_base_model()
            labels = torch.tensor(sum(len(r["labels"]) - r["labels"].count(IGNORED_LABEL) for r in rows), device=device)
            labels = self.accelerator.reduce(labels, "sum")
            total = torch.zeros((), device=device)
            batches = list(token_batches(rows, self.tokens_per_batch))
            for number, members in enumerate(batches, start=1):
                batch = pad_batch(members, self.pad_token_id, device)
                last = number == len(batches)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        # data parallelism averages gradients over the processes: times their number, it sums them
                        loss = sum_of_losses(model, causal_model, batch) * self.args.world_size / labels
                    self.accelerator.backward(loss)
                total += loss.detach()
            total.item()  # waits for the device, so that the time measured is that of the work
            self.real_tokens += sum(len(r["input_ids"]) for r in rows)
            self.padded_tokens += sum(len(b) * len(b[0]["input_ids"]) for b in batches)
            self.step_seconds += time.perf_counter() - begun
            return total

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            """Log and return the mean loss a token on the validation examples, in nats, over all of their labels."""
            model = self.model_wrapped if self.args.world_size == 1 else self.model
            model = evaluation_mode(self.accelerator.unwrap_model(model))
            rows = [self.eval_dataset[i] for i in range(self.args.process_index, len(self.eval_dataset), self.args.world_size)]
            totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
            for members in token_batches(rows, self.tokens_per_batch):
                batch = pad_batch(members, self.pad_token_id, self.args.device)
                with torch.no_grad(), self.compute_loss_context_manager():
                    totals[0] += sum_of_losses(model, model.get_base_model(), batch)
                totals[1] += (batch["labels"] != IGNORED_LABEL).sum()
            totals = self.accelerator.reduce(totals, "sum")
            metrics = {"eval_loss": (totals[0] / totals[1]).item()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    return CompletionTrainer


def make_callback(checkpoint_settings: dict[str, Any]) -> Any:
    """Return the Trainer callback that shows progress, stops cleanly on signals and NaN, and seals checkpoints."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class RunCallback(TrainerCallback):
        def __init__(self) -> None:
            self.signal: int | None = None
            self.previous_handlers: dict[int, Any] = {}
            self.bar: tqdm | None = None
            self.shown: dict[str, str] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous_handlers[number] = signal.signal(number, self.remember_signal)
            if state.is_world_process_zero:
                self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit=" steps", desc="training", disable=None)

        def remember_signal(self, number: int, frame: Any) -> None:
            self.signal = number

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.bar is not None:
                self.bar.update(1)
            if self.signal is not None:  # a checkpoint first, then the end
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
            losses = [logs[key] for key in ("loss", "eval_loss") if key in (logs or {})]
            if not all(map(math.isfinite, losses)):
                raise PipelineError(f"the loss is {losses[0]} at step {state.global_step}: training has diverged; "
                                    "lower --learning_rate")
            for key, name in (("loss", "loss"), ("eval_loss", "validation")):
                if key in (logs or {}):
                    self.shown[name] = f"{logs[key]:.3f}"
            if self.bar is not None:
                self.bar.set_postfix(self.shown)
                if "eval_loss" in (logs or {}):
                    tqdm.write(f"step {state.global_step}/{state.max_steps}: validation loss {logs['eval_loss']:.4f}", file=sys.stderr)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                files = hash_files(folder)
                files.pop(CHECKPOINT_HASHES, None)  # left where this takes the place of a checkpoint that was damaged
                write_json(folder / CHECKPOINT_HASHES, {"settings": checkpoint_settings, "files": files})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for number, handler in self.previous_handlers.items():
                signal.signal(number, handler)
            if self.bar is not None:
                self.bar.close()

    return RunCallback()


# ---------------------------------------------------------------------------------------------------------------
# Resuming
# ---------------------------------------------------------------------------------------------------------------

def resume_settings(args: argparse.Namespace, data_hash: str, base_hash: str, device: str) -> dict[str, Any]:
    """Return what a resumed run must share with the run that wrote a checkpoint."""
    values = {key: value for key, value in public_arguments(args).items() if key in RESUME_SETTINGS}
    return {**values, "data_hash": data_hash, "base_model_hash": base_hash, "device": device, "torch": versions().get("torch")}


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoint folders, the newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: -int(p.name.rpartition("-")[2]))


def find_checkpoint(folder: Path, settings: dict[str, Any]) -> Path | None:
    """Return the newest checkpoint that is whole; say which were passed over and why.

    Raises PipelineError naming the first difference where that checkpoint is of a run with other settings.
    """
    for checkpoint in checkpoints_in(folder):
        try:
            seal = json.loads((checkpoint / CHECKPOINT_HASHES).read_bytes())
        except (OSError, ValueError):
            print(f"{checkpoint.name}: not complete, passed over", file=sys.stderr)
            continue
        found = hash_files(checkpoint)
        found.pop(CHECKPOINT_HASHES)
        if found != seal["files"]:
            changed = next(n for n in sorted(found.keys() | seal["files"].keys()) if found.get(n) != seal["files"].get(n))
            print(f"{checkpoint.name}: {changed} has changed since it was written, passed over", file=sys.stderr)
            continue
        for key, value in settings.items():
            if seal["settings"].get(key) != value:
                raise PipelineError(f"--resume: {key} is {value!r} now and was {seal['settings'].get(key)!r} when {checkpoint} was "
                                    "written; restore it, or start anew with --overwrite")
        return checkpoint
    return None


def prepare_checkpoint_folder(folder: Path, args: argparse.Namespace, settings: dict[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, or None for a new run; PipelineError where the user has to choose."""
    existing = checkpoints_in(folder) if folder.is_dir() else []
    if args.resume:
        checkpoint = find_checkpoint(folder, settings) if existing else None
        print(f"going on from {checkpoint}" if checkpoint else "nothing to resume: starting at step 0")
        return checkpoint
    if existing and not args.overwrite:
        raise PipelineError(f"{folder}: holds {existing[0].name} of a run that has not ended; go on with it by --resume, "
                            "or start anew with --overwrite")
    for checkpoint in existing:
        shutil.rmtree(checkpoint)
    return None


# ---------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------

def model_hash(name: str, model: Any) -> str:
    """Return the hub commit of a hub model, or the combined hash of the weight files of a local folder."""
    if not Path(name).is_dir():
        return str(model.config._commit_hash)
    return combined_hash({file.name: sha256_file(file) for file in sorted(Path(name).glob("*.safetensors"))})


def training_curve(log_history: list[dict[str, float]], examples_per_step: int) -> list[dict[str, float]]:
    """Return {"step", "examples", "train_loss" or "validation_loss", "learning_rate"} entries in order of the steps."""
    curve = []
    for entry in log_history:
        row = {"step": entry["step"], "examples": entry["step"] * examples_per_step}
        for key, name in (("loss", "train_loss"), ("eval_loss", "validation_loss"), ("learning_rate", "learning_rate")):
            if key in entry:
                row[name] = entry[key]
        if "train_loss" in row or "validation_loss" in row:
            curve.append(row)
    return curve


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    """Draw training and validation loss against the number of examples as a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for key, label, style in (("train_loss", "training (mean since the last point)", "-"), ("validation_loss", "validation", "o-")):
        points = [(row["examples"], row[key]) for row in curve if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="examples", ylabel="loss (nats a token of the completion)", title="Training curve")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def training_arguments(args: argparse.Namespace, checkpoints: Path, precision: str, steps: int, resumed: bool) -> Any:
    """Return the Trainer's arguments; a resumed run has its first validation behind it."""
    import torch
    from transformers import TrainingArguments

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if args.examples_per_step % world_size:
        raise PipelineError(f"--examples_per_step {args.examples_per_step}: not a multiple of the {world_size} processes")
    every = args.eval_steps or max(1, steps // 5)
    return TrainingArguments(
        output_dir=str(checkpoints), per_device_train_batch_size=args.examples_per_step // world_size,
        num_train_epochs=args.num_train_epochs, max_steps=args.max_steps or -1, learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type, warmup_steps=WARMUP_RATIO, max_grad_norm=1.0, weight_decay=0.0,
        optim="adamw_torch_fused", bf16=precision == "bf16", fp16=precision == "fp16", use_cpu=not torch.cuda.is_available(),
        logging_steps=args.logging_steps, logging_nan_inf_filter=False, eval_strategy="steps", eval_steps=every,
        eval_on_start=not resumed, save_strategy="steps", save_steps=args.save_steps or every, save_total_limit=CHECKPOINTS_KEPT,
        report_to=args.report_to, disable_tqdm=True, seed=args.seed, data_seed=args.seed, remove_unused_columns=False,
        dataloader_pin_memory=False, push_to_hub=False, ddp_find_unused_parameters=False)


def encode_splits(args: argparse.Namespace, tokenizer: Any) -> tuple[EncodedExamples, EncodedExamples, str]:
    """Return the sampled training examples, the validation examples, and the identity of the data."""
    if args.max_length < MIN_LENGTH:
        raise PipelineError(f"--max_length {args.max_length}: leaves no room for prompt and completion; give at least {MIN_LENGTH}")
    data = load_examples(args.dataset, ("train", "validation"))
    manifest = read_manifest(Path(args.dataset)) if Path(args.dataset).is_dir() else None
    identity = manifest["data_hash"] if manifest and "data_hash" in manifest else str(data["train"]._fingerprint)
    train = encode_examples(tokenizer, *sample_examples(data["train"], args.max_train_samples, args.seed), args.max_length)
    validation = encode_examples(tokenizer, *sample_examples(data["validation"], args.max_validation_samples, args.seed),
                                 args.max_length)
    for name, examples in (("train", train), ("validation", validation)):
        if not len(examples):
            raise PipelineError(f"{args.dataset}: split {name!r} is empty; run preprocess_data.py on more files")
    return train, validation, identity


def train(args: argparse.Namespace) -> None:
    """Train the adapter and write it to --output_dir; publish it to --hf_repository if there is one."""
    started = time.time()
    check_replaceable(args.output_dir, "adapter_config.json")
    if args.hf_repository:
        check_hub_write(args.hf_repository)
    tokenizer = load_tokenizer(args.model_name_or_path, args.model_revision)
    train_set, validation_set, data_hash = encode_splits(args, tokenizer)

    import transformers

    quiet_libraries()
    transformers.set_seed(args.seed)
    precision = choose_precision(args.precision)
    device = device_name()
    base = load_base_model(args.model_name_or_path, args.model_revision, args.quantization, precision)
    base_hash = model_hash(args.model_name_or_path, base)
    if args.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    model = add_adapters(base, args)

    checkpoints = args.output_dir.with_name(f"{args.output_dir.name}.checkpoints")
    with output_lock(args.output_dir):
        settings = resume_settings(args, data_hash, base_hash, device)
        resume_from = prepare_checkpoint_folder(checkpoints, args, settings)
        steps = args.max_steps or math.ceil(math.ceil(len(train_set) / args.examples_per_step) * args.num_train_epochs)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"device: {device}, {precision}, base model in {'NF4' if args.quantization == 'nf4' else precision}\n"
              f"{trainable:,} trainable parameters; {len(train_set):,} examples of {train_set.lengths.mean():.0f} tokens "
              f"({int(train_set.lengths.sum()):,}), {steps:,} steps of {args.examples_per_step}; "
              f"{len(validation_set):,} validation examples", flush=True)
        callback = make_callback(settings)
        trainer = make_trainer_class()(
            model=model, args=training_arguments(args, checkpoints, precision, steps, resume_from is not None), train_dataset=train_set,
            eval_dataset=validation_set, tokens_per_batch=args.tokens_per_batch, pad_token_id=tokenizer.eos_token_id)
        for unwanted in (transformers.ProgressCallback, transformers.PrinterCallback):
            trainer.remove_callback(unwanted)
        trainer.add_callback(callback)
        begun = time.time()
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        train_seconds = time.time() - begun
        stop_if_signalled(callback.signal, checkpoints)
        if not any("eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in trainer.state.log_history):
            trainer.evaluate()
        curve = training_curve(trainer.state.log_history, args.examples_per_step)
        summary = {"train_seconds": round(train_seconds, 1), "steps": trainer.state.global_step,
                   "real_token_share": round(trainer.real_tokens / max(1, trainer.padded_tokens), 4),
                   "tokens_per_second": round(trainer.real_tokens / max(1e-9, trainer.step_seconds), 1),
                   "validation_loss_before": next(row["validation_loss"] for row in curve if "validation_loss" in row),
                   "validation_loss_after": [row["validation_loss"] for row in curve if "validation_loss" in row][-1]}
        if trainer.is_world_process_zero():
            write_adapter(args, model, tokenizer, curve, started, data_hash=data_hash, base_model_hash=base_hash,
                          quantization=args.quantization, precision=precision, device=device, summary=summary,
                          counts={"train_examples": len(train_set), "validation_examples": len(validation_set),
                                  "trainable_parameters": trainable})
            shutil.rmtree(checkpoints, ignore_errors=True)
            print(f"validation loss {summary['validation_loss_before']:.4f} before, {summary['validation_loss_after']:.4f} after; "
                  f"{summary['real_token_share']:.1%} of the computed tokens were real; "
                  f"{summary['tokens_per_second']:,.0f} tokens a second")
            print(f"wrote {args.output_dir} in {duration(time.time() - started)}")
            if args.hf_repository:
                commit = push_folder(args.output_dir, args.hf_repository, "Add the LoRA adapter")
                print(f"published {args.hf_repository} (commit {commit})")


def stop_if_signalled(number: int | None, checkpoints: Path) -> None:
    """Raise what the signal asked for, now that the checkpoint is written."""
    if number is None:
        return
    newest = checkpoints_in(checkpoints)[0]
    print(f"stopped; {newest} is complete: the same command with --resume goes on from it", file=sys.stderr)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def write_adapter(args: argparse.Namespace, model: Any, tokenizer: Any, curve: list[dict[str, float]], started: float,
                  **details: Any) -> None:
    """Write adapter, tokenizer, curve and manifest as one folder."""
    with atomic_folder(args.output_dir) as folder:
        # no card of PEFT's own: it would name the base model by the path on this machine
        model.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(str(folder))
        with open(folder / "training_curve.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in curve)
        draw_curve(curve, folder / "training_curve.png")
        write_manifest(folder / "manifest.json", args, hash_files(folder), started, **details)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("what is read and written")
    files.add_argument("--model_name_or_path", default="microsoft/phi-1_5", help="base model (default: %(default)s)")
    files.add_argument("--model_revision", help="branch, tag or commit of a hub model (default: main)")
    files.add_argument("--dataset", default="data/kotlin_prepared_dataset",
                       help="folder that preprocess_data.py wrote, or a hub data set (default: %(default)s)")
    files.add_argument("--output_dir", type=Path, default=Path("models/adapter"), help="the adapter (default: %(default)s)")
    files.add_argument("--hf_repository", help="publish the adapter to this hub repository (default: stay local)")
    files.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of an interrupted run")
    files.add_argument("--overwrite", action="store_true", help="start anew although an interrupted run could be resumed")
    learn = parser.add_argument_group("what is learned")
    learn.add_argument("--max_train_samples", type=non_negative_int, default=100_000,
                       help="examples drawn from the train split; 0: all (default: %(default)s)")
    learn.add_argument("--max_validation_samples", type=non_negative_int, default=500,
                       help="examples drawn from the validation split; 0: all (default: %(default)s)")
    learn.add_argument("--quantization", choices=("nf4", "none"), default="nf4", help="of the base model (default: %(default)s)")
    learn.add_argument("--precision", choices=("auto", "bf16", "fp16", "float32"), default="auto",
                       help="of the computation; auto: bf16 where the hardware has it, else fp16 on a GPU, float32 on a CPU "
                            "(default: %(default)s)")
    learn.add_argument("--lora_r", type=positive_int, default=16, help="rank of the adapters (default: %(default)s)")
    learn.add_argument("--lora_alpha", type=positive_int, default=32,
                       help="adapters are scaled by lora_alpha / lora_r (default: %(default)s)")
    learn.add_argument("--lora_dropout", type=fraction, default=0.0, help="(default: %(default)s)")
    learn.add_argument("--lora_target_modules", nargs="+", default=["all-linear"],
                       help="names of the layers with adapters; all-linear: every linear layer but the head (default: %(default)s)")
    learn.add_argument("--use_rslora", action="store_true", help="scale adapters by lora_alpha / sqrt(lora_r)")
    learn.add_argument("--learning_rate", type=float, default=1e-3, help="its highest value (default: %(default)s)")
    learn.add_argument("--lr_scheduler_type", choices=("cosine", "linear", "constant_with_warmup"), default="cosine",
                       help=f"after a warm-up over {WARMUP_RATIO:.0%}%% of the steps (default: %(default)s)")
    learn.add_argument("--examples_per_step", type=positive_int, default=16,
                       help="examples in one optimizer step, over all processes (default: %(default)s)")
    learn.add_argument("--num_train_epochs", type=float, default=1.0, help="(default: %(default)s)")
    learn.add_argument("--max_steps", type=non_negative_int, default=0,
                       help="optimizer steps, in place of --num_train_epochs; 0: by epochs (default: %(default)s)")
    learn.add_argument("--max_length", type=positive_int, default=1024,
                       help="longest example, in tokens; longer ones lose the start of the prompt (default: %(default)s)")
    learn.add_argument("--seed", type=int, default=0, help="of the sample, the order and the adapters (default: %(default)s)")
    work = parser.add_argument_group("how it is computed and shown")
    work.add_argument("--tokens_per_batch", type=positive_int, default=8192,
                      help="padded tokens that pass through the model at once; halved when memory runs out (default: %(default)s)")
    work.add_argument("--gradient_checkpointing", action="store_true", help="compute activations twice to save memory")
    work.add_argument("--eval_steps", type=non_negative_int, default=0,
                      help="steps between two validations; 0: a fifth of the run (default: %(default)s)")
    work.add_argument("--save_steps", type=non_negative_int, default=0,
                      help="steps between two checkpoints; 0: as --eval_steps (default: %(default)s)")
    work.add_argument("--logging_steps", type=positive_int, default=10, help="(default: %(default)s)")
    work.add_argument("--report_to", nargs="+", default=["none"], help="the Trainer's trackers, e.g. tensorboard (default: none)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(train, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
