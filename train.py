"""Stage 3 of 5: fine-tune a causal language model on (prompt, completion) examples with QLoRA.

Reads   data/kotlin_prepared_dataset/   train and validation: {"prompt": str, "completion": str}
        --replay_dataset                optional JSONL of the same fields: code that the model must not forget
Writes  models/adapter/                 the LoRA adapter and its tokenizer, report.md, training_curve.jsonl and .png, manifest.json
        models/adapter.checkpoints/     while it runs; removed when it has ended

The base model is quantized to 4 bits (NF4) and frozen; LoRA adapters on all of its linear layers are trained in
float32 under bf16 autocast.  The loss is taken on the completion and the end-of-text token behind it, never on the
prompt.  Prompt and completion are tokenized apart and joined, so that training sees what inference will see.  One
optimizer step holds --examples_per_step examples, whatever the device; they pass through the model in batches of at
most --tokens_per_batch tokens, padded to their own longest row.  What is saved is the adapter of the validation with the
lowest loss.

Memory: the model, activations in proportion to --tokens_per_batch (auto: as many as half of the free memory takes), and 4
bytes a token of the sampled examples (100,000 examples of 200 tokens: 80 MB).  Time: linear in the tokens.

Run:    python train.py
        torchrun --nproc_per_node 4 train.py      # on four GPUs: the same steps, each shared out
Quick:  python train.py --model_name_or_path SMALL_MODEL --max_train_samples 200 --quantization none
"""
import argparse
import contextlib
import functools
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_io import (
    PipelineError,
    Terminated,
    atomic_folder,
    available_memory,
    check_hub_write,
    check_local_model,
    check_replaceable,
    choose_precision,
    combined_hash,
    device_name,
    duration,
    encode_prompts,
    find_manifest,
    first_line,
    fraction,
    hash_files,
    hub_errors,
    hub_files,
    load_examples,
    load_tokenizer,
    model_errors,
    non_negative_int,
    output_lock,
    parse_json_line,
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
LOSS_BLOCK_ROWS = 128  # rows of logits that are in float32 at one time; more leave a CPU's cache
LENGTH_POOL_STEPS = 50  # steps whose examples are sorted by length together
WARMUP_RATIO = 0.03
MIN_LENGTH = 8  # tokens of prompt, completion and end of text together
# In a repository that holds the merge of an earlier adapter: what must not lie beside a new one.
MERGED_MODEL = re.compile(r"model.*\.safetensors(\.index\.json)?|(generation_)?config\.json")
CHECKPOINT_HASHES = "pipeline_checkpoint.json"  # written last: a checkpoint without it is not whole
BEST_ADAPTER = "best_adapter.safetensors"  # in a checkpoint: the adapter of the best validation so far
CHECKPOINTS_KEPT = 2
PROBE_ROWS = 4  # examples that memory and time are measured on before training
MEMORY_SHARE = 0.5  # of the free memory that --tokens_per_batch auto plans with: the backward pass needs as much again
MOST_TOKENS_PER_BATCH = {"cuda": 32_768, "cpu": 2048}  # on a CPU more is slower (perf/README.md)
DEFAULT_REPLAY_FRACTION = 0.1
REPLAY_VALIDATION_SHARE = 0.1  # of --replay_dataset: its last rows, which are never trained on
SHOWN_COMPLETIONS, SHOWN_TOKENS = 3, 64  # in the report
# Settings that a resumed run must share with the run that it goes on with; the others do not change what is learned.
RESUME_SETTINGS = ("model_name_or_path", "dataset", "max_train_samples", "max_validation_samples", "quantization",
                   "precision", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "learning_rate",
                   "lr_scheduler_type", "examples_per_step", "num_train_epochs", "max_steps", "max_length", "replay_fraction",
                   "torch_compile", "seed")


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


Pairs = tuple[list[str], list[str]]  # prompts and completions


def sample_examples(split: Any, number: int, seed: int) -> Pairs:
    """Return prompts and completions of `number` rows of a split drawn at random with the seed; 0: all rows."""
    count = len(split)
    chosen = range(count) if number == 0 or number >= count else sorted(random.Random(seed).sample(range(count), number))
    rows = split.select(chosen)[:]
    return list(rows["prompt"]), list(rows["completion"])


def sample_replay(path: Path, number: int, validation_number: int, seed: int) -> tuple[Pairs, Pairs]:
    """Return `number` training and at most `validation_number` (0: all) validation pairs of a replay file, as `sample_examples` does.

    The file's last tenth is for validation: its neighbours are pieces of one source file, so that at most one file is on both
    sides.  Only the chosen lines are kept in memory.
    """
    if not path.is_file():
        raise PipelineError(f"--replay_dataset {path}: no such file; give JSON lines with the fields prompt and completion")
    with open(path, "rb") as file:
        count = sum(1 for _ in file)
    first_validation = count - max(1, round(count * REPLAY_VALIDATION_SHARE))
    if first_validation < number:
        raise PipelineError(f"--replay_dataset {path}: {number} examples are needed for training and {max(0, first_validation)} of its "
                            f"{count} are for that; give a larger file, or lower --replay_fraction or --max_train_samples")
    training = set(random.Random(seed).sample(range(first_validation), number))
    held_out = range(first_validation, count)  # drawn from apart, so that runs with other shares are validated on the same lines
    validation = set(held_out if not 0 < validation_number < len(held_out) else random.Random(seed).sample(held_out, validation_number))
    found: tuple[Pairs, Pairs] = (([], []), ([], []))
    with open(path, "rb") as file:
        for i, line in enumerate(file):
            if i in training or i in validation:
                row = parse_json_line(path, i + 1, line, {"prompt": str, "completion": str})
                prompts, completions = found[i in validation]
                prompts.append(row["prompt"])
                completions.append(row["completion"])
    return found


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
    """Yields the indices of one step after the other, in `step_order`; the Trainer calls `set_epoch`, so that a resume sees the same."""

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


def token_batches(rows: list[Any], tokens_per_batch: int, length: Callable[[Any], int] = row_length) -> Iterator[list]:
    """Yield the rows in batches whose padded size, rows times longest row, is at most `tokens_per_batch` tokens.

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


def real_token_share(lengths: np.ndarray, examples_per_step: int, processes: int, tokens_per_batch: int, seed: int) -> float:
    """Return which share of the tokens that pass through the model in the first epoch will be real ones, not padding."""
    order, padded = lengths[step_order(lengths, examples_per_step, seed, 0)], 0
    for start in range(0, len(order), examples_per_step):
        step = sorted(order[start:start + examples_per_step].tolist(), reverse=True)
        for process in range(processes):
            padded += sum(len(batch) * batch[0] for batch in token_batches(step[process::processes], tokens_per_batch, length=int))
    return float(lengths.sum() / padded)


def pad_batch(rows: list[dict[str, list[int]]], pad_token_id: int, device: Any = None) -> dict[str, Any]:
    """Return input_ids and labels of shape (rows, longest row), padded on the right.

    Padding is marked by IGNORED_LABEL, not by the token's identity: an end-of-text token that doubles as the padding token
    stays supervised where it ends a completion.  There is no attention mask: padding stands behind every real token, and a
    causal model does not look there.
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest)
    ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORED_LABEL)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length], labels[i, :length] = row["input_ids"], row["labels"]
    return {"input_ids": torch.from_numpy(ids).to(device), "labels": torch.from_numpy(labels).to(device)}


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

    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)  # position i predicts i + 1
    labelled = labels != IGNORED_LABEL
    with head_only_at(causal_model, labelled):
        # without an attention mask (`pad_batch`), attention takes the faster of its kernels
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return loss_function().apply(logits, labels[labelled])


@functools.cache
def loss_function() -> type:
    """Return the cross-entropy that turns the logits into their own gradient; made here because importing torch takes seconds."""
    import torch

    class CrossEntropyInPlace(torch.autograd.Function):
        """Sum of the negative log likelihoods of `targets` (rows) under `logits` (rows, vocabulary), as a float32 scalar.

        Where a gradient is wanted, softmax minus one-hot takes the place of the logits, block by block: no second tensor of
        their size is made, and only a block is in float32.  Nothing reads the logits again; should an operation before have
        kept them for its own backward pass, autograd notices the change and raises.
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

    return CrossEntropyInPlace


# ---------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------

def local_rank() -> int:
    """Return the number of this process on its machine, as torchrun gives it: the GPU that it works on."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def load_base_model(name: str, revision: str | None, quantization: str, precision: str) -> Any:
    """Return the frozen base model; with nf4 its linear layers are quantized to 4 bits (Dettmers et al. 2023)."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch_dtype(precision)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=dtype) if quantization == "nf4" else None
    check_local_model(name)
    with model_errors(name):
        if not Path(name).is_dir() and not any(file.endswith(".safetensors") for file in hub_files(name, revision)[1]):
            raise PipelineError(f"model {name}: holds no safetensors file; pickled weights are not loaded")
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, quantization_config=config, trust_remote_code=False,
            use_safetensors=True, device_map={"": local_rank()} if torch.cuda.is_available() else None)
    model.config.use_cache = False
    return model.requires_grad_(False)


def add_adapters(model: Any, args: argparse.Namespace) -> Any:
    """Return the model with LoRA adapters (Hu et al. 2021) in float32; by default on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    targets = args.lora_target_modules
    head = next((name.rpartition(".")[2] for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    if head in targets:
        raise PipelineError(f"--lora_target_modules {head}: is the output head, which stays as it is; name other layers, or all-linear")
    config = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha or 2 * args.lora_r, lora_dropout=args.lora_dropout,
                        use_rslora=args.use_rslora, target_modules=targets[0] if targets == ["all-linear"] else targets,
                        task_type="CAUSAL_LM")
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise PipelineError(f"--lora_target_modules {' '.join(targets)}: {str(error).splitlines()[0]}") from error
    fuse_adapters(adapted)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    if args.torch_compile:  # block by block: all blocks are alike, so that one is compiled for all
        for module in model.modules():
            if type(module).__name__ in (model._no_split_modules or ()):
                module.compile(dynamic=True)
    return adapted


def checkpoint_activations(model: Any) -> None:
    """Let the model keep the inputs of its blocks alone, and compute all else again in the backward pass (Chen et al. 2016)."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@functools.cache
def lora_function() -> type:
    """Return the product with a frozen weight and its adapter; made here because importing torch takes seconds."""
    import torch

    class LoraProduct(torch.autograd.Function):
        """x W' + s x A' B' (Hu et al. 2021) for x (tokens, in), W (out, in), A (r, in), B (out, r), and its gradients of x, A and B.

        The adapter's part is added within the matrix product (addmm), forward and backward: PEFT's own sequence of
        products, casts, scaling and sums reads and writes tensors of the layer's size six more times.  `weight` is called
        for W, in the backward pass too: a weight in 4 bits is there in 16 bits for no longer than its product.
        """

        @staticmethod
        def forward(ctx: Any, x: Any, a: Any, b: Any, scaling: float, weight: Callable[[], Any], bias: Any) -> Any:
            low_a, low_b = a.to(x.dtype), (b * scaling).to(x.dtype)
            inner = x @ low_a.T
            result = torch.nn.functional.linear(x, weight(), bias).addmm_(inner, low_b.T)
            ctx.save_for_backward(x, inner, low_a, low_b)
            ctx.scaling, ctx.weight, ctx.adapter_dtype = scaling, weight, a.dtype
            return result

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
            x, inner, low_a, low_b = ctx.saved_tensors
            inner_gradient = gradient @ low_b
            of_x = (gradient @ ctx.weight()).addmm_(inner_gradient, low_a) if ctx.needs_input_grad[0] else None
            of_a = (inner_gradient.T @ x).to(ctx.adapter_dtype)
            of_b = (gradient.T @ inner).to(ctx.adapter_dtype) * ctx.scaling
            return of_x, of_a, of_b, None, None, None

    return LoraProduct


def frozen_weight(layer: Any, dtype: Any) -> Any:
    """Return the weight of a linear layer, as (out, in) in `dtype`, whatever form it is kept in."""
    if type(layer).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight, layer.weight.quant_state).to(dtype)
    weight = layer.weight.to(dtype)
    return weight.T if type(layer).__name__ == "Conv1D" else weight  # Conv1D: GPT-2's linear layer, kept as (in, out)


def fuse_adapters(model: Any) -> None:
    """Let the layers with a plain adapter (one, without dropout) compute it by `lora_function`, and leave the others to PEFT."""
    import torch
    from peft.tuners.lora import Linear
    from transformers.pytorch_utils import Conv1D

    kinds = [Linear]
    with contextlib.suppress(ImportError):
        from peft.tuners.lora.bnb import Linear4bit

        kinds.append(Linear4bit)

    def fuse(layer: Any, name: str) -> None:
        peft_forward, base, product = layer.forward, layer.get_base_layer(), lora_function()

        def forward(x: Any) -> Any:
            if layer.disable_adapters or layer.merged:
                return peft_forward(x)
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            with torch.autocast(kind, enabled=False):
                rows = x.reshape(-1, x.shape[-1]).to(dtype)
                result = product.apply(rows, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name],
                                       functools.partial(frozen_weight, base, dtype), None if base.bias is None else base.bias.to(dtype))
            return result.view(*x.shape[:-1], -1)

        layer.forward = forward

    for layer in model.modules():
        if type(layer) in kinds and isinstance(layer.get_base_layer(), (torch.nn.Linear, Conv1D)) and len(layer.lora_A) == 1:
            name = next(iter(layer.lora_A))
            if isinstance(layer.lora_dropout[name], torch.nn.Identity) and not layer.lora_variant and layer.lora_B[name].bias is None:
                fuse(layer, name)


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

    class StepLoader(torch.utils.data.DataLoader):
        """The examples of one optimizer step at a time, the same in every process."""

        def set_epoch(self, epoch: int) -> None:
            self.batch_sampler.set_epoch(epoch)

    class CompletionTrainer(Trainer):
        """One Trainer batch is one optimizer step; `training_step` cuts it into batches of `tokens_per_batch`.

        So the step is the same on every device, and what a batch may hold is a matter of memory alone.  Several processes
        read the same step and take every n-th of its examples each.
        """

        def __init__(self, *args: Any, pad_token_id: int, replay_set: EncodedExamples | None, **kwargs: Any):
            super().__init__(*args, data_collator=list, **kwargs)
            self.pad_token_id, self.replay_set = pad_token_id, replay_set
            self.tokens_per_batch = 0  # set before training
            self.real_tokens = self.padded_tokens = 0  # the latter of this process
            self.step_seconds = 0.0
            self.best: dict[str, Any] = {"loss": math.inf}  # also "step" and "weights", of the best validation behind the first step

        def get_train_dataloader(self) -> StepLoader:
            sampler = StepSampler(self.train_dataset.lengths, self.args.train_batch_size, self.args.seed)
            return StepLoader(self.train_dataset, batch_sampler=sampler, collate_fn=list)

        def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> None:
            return None  # counted in _step

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        def measure(self, rows: list) -> tuple[float, float]:
            """Return what one token of a batch of `rows` takes: bytes kept for the backward pass, and seconds.

            Weights, gradients and the random state are left as they were.  Where the rows do not fit into memory, fewer are taken.
            """
            while True:
                with contextlib.suppress(torch.OutOfMemoryError):
                    return self._measure(rows)
                if len(rows) == 1:
                    self.keep_less(rows)
                rows = rows[:max(1, len(rows) // 2)]
                self.model.zero_grad()
                torch.cuda.empty_cache()

        def keep_less(self, rows: list) -> None:
            """Turn gradient checkpointing on, as one of `rows` alone does not fit; PipelineError where it is on already."""
            longest, model = max(map(row_length, rows)), self.accelerator.unwrap_model(self.model)
            if model.is_gradient_checkpointing:
                raise PipelineError(f"one example of {longest} tokens does not fit into the device's memory, even with "
                                    "--gradient_checkpointing; lower --max_length")
            checkpoint_activations(model)
            print(f"out of memory with one example of {longest} tokens: going on with --gradient_checkpointing", file=sys.stderr)

        def _measure(self, rows: list) -> tuple[float, float]:
            batch = pad_batch(rows, self.pad_token_id, self.args.device)
            model, kept, seconds = self.model.train(), {}, 0.0
            weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

            def keep(tensor: Any) -> Any:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
                for _ in range(2):  # the first time prepares kernels and caches
                    kept.clear()
                    begun = time.perf_counter()
                    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
                    with hooks, self.compute_loss_context_manager():
                        loss = sum_of_losses(model, model.get_base_model(), batch)
                    loss.backward()
                    loss.item()  # waits for the device
                    seconds = time.perf_counter() - begun
                    model.zero_grad()
            tokens = batch["input_ids"].numel()
            return sum(kept.values()) / tokens, seconds / tokens

        def training_step(self, model: Any, inputs: list, num_items_in_batch: Any = None) -> Any:
            model.train()
            while True:
                with contextlib.suppress(torch.OutOfMemoryError):
                    return self._step(model, inputs)
                # behind the block, and not in an except, which would hold what the failed step had in memory
                longest = max(map(row_length, inputs))
                if self.args.world_size > 1:  # the other processes are ahead already
                    raise PipelineError(f"--tokens_per_batch {self.tokens_per_batch}: does not fit into the device's memory; "
                                        "go on with half of it, or with --gradient_checkpointing, and --resume")
                if self.tokens_per_batch <= longest:
                    self.keep_less(inputs)
                else:
                    self.tokens_per_batch = max(longest, self.tokens_per_batch // 2)
                    print(f"out of memory: going on with --tokens_per_batch {self.tokens_per_batch}", file=sys.stderr)
                model.zero_grad()  # the whole step is taken again: nothing is lost and nothing counts twice
                torch.cuda.empty_cache()

        def _step(self, model: Any, step: list) -> Any:
            begun = time.perf_counter()
            device, causal_model = self.args.device, self.accelerator.unwrap_model(model).get_base_model()
            labels = sum(len(row["labels"]) - row["labels"].count(IGNORED_LABEL) for row in step)
            rows = sorted(step, key=row_length, reverse=True)[self.args.process_index::self.args.world_size]
            total = torch.zeros((), device=device)
            batches = list(token_batches(rows or step[:1], self.tokens_per_batch))
            for number, members in enumerate(batches, start=1):
                batch = pad_batch(members, self.pad_token_id, device)
                with contextlib.nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        # Data parallelism averages gradients over the processes: times their number, it sums them.  A
                        # process without an example of its own takes part with a weight of 0.
                        loss = sum_of_losses(model, causal_model, batch) * (self.args.world_size * bool(rows) / labels)
                    self.accelerator.backward(loss)
                total += loss.detach()
            total.item()  # waits for the device, so that the time measured is that of the work
            self.real_tokens += sum(len(row["input_ids"]) for row in step)
            self.padded_tokens += sum(len(b) * len(b[0]["input_ids"]) for b in batches)
            self.step_seconds += time.perf_counter() - begun
            return total

        def mean_loss(self, model: Any, examples: EncodedExamples) -> float:
            """Return the mean loss a token over all labels of the examples, in nats; the processes share the work."""
            rows = [examples[i] for i in range(self.args.process_index, len(examples), self.args.world_size)]
            totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
            for members in token_batches(rows, self.tokens_per_batch):
                batch = pad_batch(members, self.pad_token_id, self.args.device)
                with torch.no_grad(), self.compute_loss_context_manager():
                    totals[0] += sum_of_losses(model, model.get_base_model(), batch)
                totals[1] += (batch["labels"] != IGNORED_LABEL).sum()
            totals = self.accelerator.reduce(totals, "sum")
            return (totals[0] / totals[1]).item()

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            """Log and return the validation loss, and that of the replay examples where there are any; remember the best adapter."""
            model = evaluation_mode(self.accelerator.unwrap_model(self.model))
            metrics = {"eval_loss": self.mean_loss(model, self.eval_dataset)}
            if self.replay_set is not None:
                metrics["eval_replay_loss"] = self.mean_loss(model, self.replay_set)
            self.log(metrics)
            if self.state.global_step and metrics["eval_loss"] < self.best["loss"]:
                self.best = {"loss": metrics["eval_loss"], "step": self.state.global_step,
                             "weights": {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def save_best(self, file: Path) -> None:
            """Write the best adapter so far, if there is one, with its step and loss."""
            from safetensors.torch import save_file

            if "weights" in self.best:
                save_file(self.best["weights"], file, metadata={"step": str(self.best["step"]), "loss": repr(self.best["loss"])})

        def load_best(self, file: Path) -> None:
            """Read what `save_best` wrote, if it did."""
            from safetensors import safe_open

            if file.is_file():
                with safe_open(file, "pt") as stored:
                    about = stored.metadata()
                    self.best = {"loss": float(about["loss"]), "step": int(about["step"]),
                                 "weights": {name: stored.get_tensor(name) for name in stored.keys()}}  # noqa: SIM118

        def restore_best(self) -> None:
            """Give the model the weights of the best validation."""
            with torch.no_grad():
                for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(self.best["weights"][name])

    return CompletionTrainer


def make_callback(trainer: Any, checkpoint_settings: dict[str, Any], early_stopping_patience: int) -> Any:
    """Return the Trainer callback that shows progress, stops cleanly on signals, NaN or no progress, and seals checkpoints."""
    import torch
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
                self.bar.set_postfix(self.shown | {"tokens/s": f"{trainer.real_tokens / trainer.step_seconds:,.0f}"}, refresh=False)
                self.bar.update(1)
            if args.world_size > 1:  # the processes must stop at the same step
                heard = torch.tensor(self.signal or 0, device=args.device)
                torch.distributed.all_reduce(heard, op=torch.distributed.ReduceOp.MAX)
                self.signal = int(heard) or None
            if self.signal is not None:  # a checkpoint first, then the end
                control.should_save = control.should_training_stop = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
            behind = len(losses) - 1 - losses.index(min(losses))  # validations since the best one
            if early_stopping_patience and behind >= early_stopping_patience:
                control.should_training_stop = True
                if state.is_world_process_zero:
                    print(f"step {state.global_step}: no lower validation loss in {behind} validations: ending early", file=sys.stderr)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
            losses = [logs[key] for key in ("loss", "eval_loss", "eval_replay_loss") if key in (logs or {})]
            if not all(map(math.isfinite, losses)):
                raise PipelineError(f"the loss is {losses[0]} at step {state.global_step}: training has diverged; "
                                    "lower --learning_rate")
            for key, name in (("loss", "loss"), ("eval_loss", "validation"), ("eval_replay_loss", "replay")):
                if key in (logs or {}):
                    self.shown[name] = f"{logs[key]:.3f}"
            if self.bar is not None:
                self.bar.set_postfix(self.shown, refresh=False)
                if "eval_loss" in (logs or {}):
                    replay = f", replay {logs['eval_replay_loss']:.4f}" if "eval_replay_loss" in logs else ""
                    tqdm.write(f"step {state.global_step}/{state.max_steps}: validation loss {logs['eval_loss']:.4f}{replay}",
                               file=sys.stderr)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # every process writes its random state
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                trainer.save_best(folder / BEST_ADAPTER)
                files = hash_files(folder)
                files.pop(CHECKPOINT_HASHES, None)  # left where this takes the place of a checkpoint that was damaged
                write_json(folder / CHECKPOINT_HASHES, {"settings": checkpoint_settings, "tokens_per_batch": trainer.tokens_per_batch,
                                                        "files": files})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for number, handler in self.previous_handlers.items():
                signal.signal(number, handler)
            if self.bar is not None:
                self.bar.close()

    return RunCallback()


# ---------------------------------------------------------------------------------------------------------------
# Resuming
# ---------------------------------------------------------------------------------------------------------------

def resume_settings(args: argparse.Namespace, identities: dict[str, Any], device: str) -> dict[str, Any]:
    """Return what a resumed run must share with the run that wrote a checkpoint."""
    values = {key: value for key, value in public_arguments(args).items() if key in RESUME_SETTINGS}
    return {**values, **identities, "device": device, "processes": os.environ.get("WORLD_SIZE", "1"), "torch": versions().get("torch")}


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


def choose_tokens_per_batch(args: argparse.Namespace, resume_from: Path | None, bytes_per_token: float, longest: int) -> int:
    """Return the padded tokens of a batch: --tokens_per_batch, that of the resumed run, or as many as the free memory takes.

    A resumed run keeps to the value of the run before: sums of other batches are rounded otherwise.
    """
    if args.tokens_per_batch != "auto":
        return args.tokens_per_batch
    if resume_from:
        return json.loads((resume_from / CHECKPOINT_HASHES).read_bytes())["tokens_per_batch"]
    import torch

    free, most = available_memory(), MOST_TOKENS_PER_BATCH["cuda" if torch.cuda.is_available() else "cpu"]
    return max(longest, min(most, int(MEMORY_SHARE * free / bytes_per_token)))


# ---------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------

def model_hash(name: str, revision: str | None) -> str:
    """Return the hub commit of a hub model, or the combined hash of the weight files of a local folder."""
    if not Path(name).is_dir():
        with hub_errors("model", name):
            return hub_files(name, revision)[0]
    return combined_hash({file.name: sha256_file(file) for file in sorted(Path(name).glob("*.safetensors"))})


def training_curve(log_history: list[dict[str, float]], examples_per_step: int) -> list[dict[str, float]]:
    """Return {"step", "examples", "train_loss" or "validation_loss", "learning_rate"} entries in order of the steps."""
    curve = []
    for entry in log_history:
        row = {"step": entry["step"], "examples": entry["step"] * examples_per_step}
        for key, name in (("loss", "train_loss"), ("eval_loss", "validation_loss"), ("eval_replay_loss", "replay_loss"),
                          ("learning_rate", "learning_rate")):
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
    for key, label, style in (("train_loss", "training (mean since the last point)", "-"), ("validation_loss", "validation", "o-"),
                              ("replay_loss", "replay, not trained on", "s--")):
        points = [(row["examples"], row[key]) for row in curve if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="examples", ylabel="loss (nats a token of the completion)", title="Training curve")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def complete_samples(trainer: Any, tokenizer: Any, examples: EncodedExamples, seed: int) -> list[dict[str, str]]:
    """Return {"prompt", "reference", "before", "after"} of a few examples: what the base model and the adapted one write."""
    import torch

    chosen = sorted(random.Random(seed).sample(range(len(examples)), min(SHOWN_COMPLETIONS, len(examples))))
    rows = [examples[i]["input_ids"] for i in chosen]
    prompts = [row[:examples.prompt_lengths[i]] for i, row in zip(chosen, rows, strict=True)]
    longest, device = max(map(len, prompts)), trainer.args.device
    ids = torch.tensor([[tokenizer.eos_token_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    model = evaluation_mode(trainer.accelerator.unwrap_model(trainer.model))
    model.gradient_checkpointing_disable()  # it does without a cache

    def texts(rows: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(rows, skip_special_tokens=True)

    def completions() -> list[str]:
        # eager: with --torch_compile, each new length of the cache would be compiled
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"), trainer.compute_loss_context_manager():
            return texts(model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=SHOWN_TOKENS, do_sample=False, use_cache=True,
                                        pad_token_id=tokenizer.eos_token_id)[:, longest:].tolist())

    with model.disable_adapter():
        before = completions()
    columns = (texts(prompts), texts([row[len(p):] for row, p in zip(rows, prompts, strict=True)]), before, completions())
    return [dict(zip(("prompt", "reference", "before", "after"), column, strict=True)) for column in zip(*columns, strict=True)]


def report_text(summary: dict[str, Any], curve: list[dict[str, float]], samples: list[dict[str, str]]) -> str:
    """Return report.md: the loss by step, its picture, and completions before and after training."""
    lines = ["# Training", "", "| | |", "|---|---:|", *(f"| {key.replace('_', ' ')} | {value:,} |" for key, value in summary.items()), "",
             "![training and validation loss](training_curve.png)", "",
             "| step | examples | validation loss | replay loss |", "|---:|---:|---:|---:|"]
    lines += [f"| {row['step']} | {row['examples']} | {row['validation_loss']:.4f} | {row.get('replay_loss', '')} |"
              for row in curve if "validation_loss" in row]
    lines += ["", f"## Completions of the validation set, greedy, at most {SHOWN_TOKENS} tokens"]
    for sample in samples:
        fence = "`" * max(3, 1 + max(len(run) for text in sample.values() for run in re.findall("`+", text) or [""]))
        for key, text in sample.items():
            lines += ["", f"**{key}**", fence, text, fence]
        lines += ["", "---"]
    return "\n".join(lines) + "\n"


def training_arguments(args: argparse.Namespace, checkpoints: Path, precision: str, steps: int) -> Any:
    """Return the Trainer's arguments; PipelineError where a tracker of --report_to is not installed."""
    import torch
    from transformers import TrainingArguments

    every = args.eval_steps or max(1, steps // 5)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(args.output_dir.with_name(f"{args.output_dir.name}.runs")))
    return TrainingArguments(
        output_dir=str(checkpoints), per_device_train_batch_size=args.examples_per_step,
        num_train_epochs=args.num_train_epochs, max_steps=args.max_steps or -1, learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type, warmup_steps=WARMUP_RATIO, max_grad_norm=1.0, weight_decay=0.0,
        optim="adamw_torch_fused", bf16=precision == "bf16", fp16=precision == "fp16", use_cpu=not torch.cuda.is_available(),
        logging_steps=args.logging_steps, logging_nan_inf_filter=False, eval_strategy="steps", eval_steps=every,
        eval_on_start=True, save_strategy="steps", save_steps=args.save_steps or every, save_total_limit=CHECKPOINTS_KEPT,
        report_to=args.report_to, disable_tqdm=True, seed=args.seed, data_seed=args.seed, remove_unused_columns=False,
        dataloader_pin_memory=False, push_to_hub=False, ddp_find_unused_parameters=False)


@dataclass
class Data:
    """What is learned from and what is validated on."""
    train: EncodedExamples
    validation: EncodedExamples
    replay: EncodedExamples | None  # for validation only
    identities: dict[str, str]  # what a resumed run compares


def encode_splits(args: argparse.Namespace, tokenizer: Any) -> Data:
    """Return the sampled training examples, those of --replay_dataset among them, and the validation examples."""
    if args.max_length < MIN_LENGTH:
        raise PipelineError(f"--max_length {args.max_length}: leaves no room for prompt and completion; give at least {MIN_LENGTH}")
    if args.replay_fraction and not args.replay_dataset:
        raise PipelineError("--replay_fraction: says how many, but not of what; give a --replay_dataset too")
    data = load_examples(args.dataset, ("train", "validation"))
    manifest = read_manifest(Path(args.dataset)) if Path(args.dataset).is_dir() else None
    identities = {"data_hash": manifest["data_hash"] if manifest and "data_hash" in manifest else str(data["train"]._fingerprint)}
    for split in ("train", "validation"):
        if not len(data[split]):
            raise PipelineError(f"{args.dataset}: split {split!r} is empty; run preprocess_data.py on more files")
    prompts, completions = sample_examples(data["train"], args.max_train_samples, args.seed)
    replay = None
    if args.replay_dataset:
        share = args.replay_fraction or DEFAULT_REPLAY_FRACTION
        number = round(len(prompts) * share / (1 - share))
        training, validation = sample_replay(args.replay_dataset, number, args.max_validation_samples, args.seed)
        prompts, completions = prompts + training[0], completions + training[1]
        replay = encode_examples(tokenizer, *validation, args.max_length)
        identities["replay_hash"] = sha256_file(args.replay_dataset)
    return Data(encode_examples(tokenizer, prompts, completions, args.max_length),
                encode_examples(tokenizer, *sample_examples(data["validation"], args.max_validation_samples, args.seed), args.max_length),
                replay, identities)


def show_dry_run(data: Data, tokenizer: Any, args: argparse.Namespace, tokens_per_batch: int) -> None:
    """Print one example with its labels marked, and the shapes of the first step's batches."""
    order = step_order(data.train.lengths, args.examples_per_step, args.seed, 0)[:args.examples_per_step]
    row = data.train[order[0]]
    prompt = row["labels"].count(IGNORED_LABEL)
    print(f"one example: {prompt} tokens without a label\n{tokenizer.decode(row['input_ids'][:prompt])}\n"
          f"--- and {len(row['labels']) - prompt} tokens with one ---\n{tokenizer.decode(row['input_ids'][prompt:])}")
    shapes = [f"({len(b)}, {len(b[0]['input_ids'])})" for b in token_batches([data.train[i] for i in order], tokens_per_batch)]
    print(f"the first step's batches, (rows, tokens): {', '.join(shapes)}\ndry run: nothing was trained or written")


def make_trainer(args: argparse.Namespace, settings: Any, model: Any, data: Data, pad_token_id: int) -> Any:
    """Return the Trainer of this run, without the library's own displays; PipelineError where a tracker cannot start."""
    from transformers import PrinterCallback, ProgressCallback

    try:
        trainer = make_trainer_class()(model=model, args=settings, train_dataset=data.train, eval_dataset=data.validation,
                                       replay_set=data.replay, pad_token_id=pad_token_id)
    except (ImportError, RuntimeError, ValueError) as error:
        if args.report_to == ["none"]:
            raise
        raise PipelineError(f"--report_to {' '.join(args.report_to)}: {first_line(error)}") from error
    for unwanted in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(unwanted)
    return trainer


def describe(args: argparse.Namespace, model: Any, data: Data, trainer: Any, steps: int, device: str, precision: str,
             seconds_per_token: float) -> None:
    """Print the device, what is trained on how much, and about how long it will take."""
    if not trainer.is_world_process_zero():
        return
    processes = trainer.args.world_size
    share = real_token_share(data.train.lengths, args.examples_per_step, processes, trainer.tokens_per_batch, args.seed)
    tokens = int(data.train.lengths.sum() * steps * args.examples_per_step / len(data.train))
    validations = 1 + steps // trainer.args.eval_steps
    # a validation has no backward pass, which is about two thirds of the work
    validated = validations * (data.validation.lengths.sum() + (data.replay.lengths.sum() if data.replay else 0)) / 3
    seconds = seconds_per_token * (tokens / share + validated) / processes
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"device: {f'{processes} times ' if processes > 1 else ''}{device}, {precision}, base model in "
          f"{'NF4' if args.quantization == 'nf4' else precision}\n"
          f"{trainable:,} trainable parameters; {len(data.train):,} examples, {tokens:,} tokens in {steps:,} steps of "
          f"{args.examples_per_step} examples; {share:.1%} of what is computed are real tokens, in batches of at most "
          f"{trainer.tokens_per_batch:,}; {len(data.validation):,} validation examples; about {duration(seconds)}", flush=True)


def finish(trainer: Any, args: argparse.Namespace, train_seconds: float) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Validate the last step, put the best adapter into the model, and return the summary and the curve."""
    import torch

    last = trainer.state.global_step
    if not any("eval_loss" in entry and entry["step"] == last for entry in trainer.state.log_history):
        trainer.evaluate()
    if "weights" not in trainer.best:
        raise PipelineError("no validation loss was finite; lower --learning_rate")
    if trainer.best["step"] != last:
        trainer.restore_best()
    curve = training_curve(trainer.state.log_history, args.examples_per_step)
    padded = trainer.accelerator.reduce(torch.tensor(float(trainer.padded_tokens), device=trainer.args.device), "sum").item()
    validated = [row for row in curve if "validation_loss" in row]
    best = next(row for row in validated if row["step"] == trainer.best["step"])
    summary = {"train_seconds": round(train_seconds, 1), "steps": last, "best_step": best["step"],
               "real_token_share": round(trainer.real_tokens / max(1, padded), 4),
               "tokens_per_second": round(trainer.real_tokens / max(1e-9, trainer.step_seconds), 1),
               "validation_loss_before": validated[0]["validation_loss"], "validation_loss_after": best["validation_loss"]}
    if "replay_loss" in best:
        summary |= {"replay_loss_before": validated[0]["replay_loss"], "replay_loss_after": best["replay_loss"]}
    return summary, curve


def stop_if_signalled(number: int | None, checkpoints: Path) -> None:
    """Raise what the signal asked for, now that the checkpoint is written."""
    if number is None:
        return
    newest = checkpoints_in(checkpoints)[0]
    print(f"stopped; {newest} is complete: the same command with --resume goes on from it", file=sys.stderr)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def write_adapter(args: argparse.Namespace, model: Any, tokenizer: Any, curve: list[dict[str, float]], samples: list[dict[str, str]],
                  started: float, **details: Any) -> None:
    """Write adapter, tokenizer, report, curve and manifest as one folder."""
    with atomic_folder(args.output_dir) as folder:
        # no card of PEFT's own: it would name the base model by the path on this machine
        model.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(str(folder))
        with open(folder / "training_curve.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in curve)
        draw_curve(curve, folder / "training_curve.png")
        (folder / "report.md").write_text(report_text(details["summary"], curve, samples), encoding="utf-8")
        write_manifest(folder / "manifest.json", args, hash_files(folder), started, **details)


def show_result(args: argparse.Namespace, summary: dict[str, Any], started: float) -> None:
    """Print what was learned, how fast, and where it lies."""
    print(f"validation loss {summary['validation_loss_before']:.4f} before, {summary['validation_loss_after']:.4f} after "
          f"(step {summary['best_step']}, the best); {summary['real_token_share']:.1%} of the computed tokens were real; "
          f"{summary['tokens_per_second']:,.0f} tokens a second")
    if summary["validation_loss_after"] >= summary["validation_loss_before"]:
        print("WARNING: training did not lower the validation loss; lower --learning_rate, or train on more examples", file=sys.stderr)
    print(f"wrote {args.output_dir} (report.md shows completions before and after) in {duration(time.time() - started)}")


def train(args: argparse.Namespace) -> None:
    """Train the adapter and write it to --output_dir; publish it to --hf_repository if there is one."""
    started = time.time()
    check_replaceable(args.output_dir, "adapter_config.json")
    if args.hf_repository:
        check_hub_write(args.hf_repository)
    tokenizer = load_tokenizer(args.model_name_or_path, args.model_revision)
    data = encode_splits(args, tokenizer)
    dataset_manifest = find_manifest(args.dataset, "dataset")

    import torch
    import transformers

    quiet_libraries()
    transformers.set_seed(args.seed)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    precision, device = choose_precision(args.precision), device_name()
    steps = args.max_steps or math.ceil(math.ceil(len(data.train) / args.examples_per_step) * args.num_train_epochs)
    checkpoints = args.output_dir.with_name(f"{args.output_dir.name}.checkpoints")
    settings = training_arguments(args, checkpoints, precision, steps)
    main_process = settings.process_index == 0
    model = add_adapters(load_base_model(args.model_name_or_path, args.model_revision, args.quantization, precision), args)
    data.identities["base_model_hash"] = model_hash(args.model_name_or_path, args.model_revision)

    with output_lock(args.output_dir) if main_process else contextlib.nullcontext():
        resumed_settings = resume_settings(args, data.identities, device)
        resume_from = prepare_checkpoint_folder(checkpoints, args, resumed_settings) if main_process else None
        if settings.world_size > 1:
            shared = [resume_from]
            torch.distributed.broadcast_object_list(shared)
            resume_from = shared[0]
        settings.eval_on_start = resume_from is None  # a resumed run has its first validation behind it
        trainer = make_trainer(args, settings, model, data, tokenizer.eos_token_id)
        probe = [data.train[i] for i in np.argsort(data.train.lengths, kind="stable")[::-1][:PROBE_ROWS]]  # the longest
        bytes_per_token, seconds_per_token = trainer.measure(probe)
        trainer.tokens_per_batch = choose_tokens_per_batch(args, resume_from, bytes_per_token, int(data.train.lengths.max()))
        describe(args, model, data, trainer, steps, device, precision, seconds_per_token)
        if args.dry_run:
            show_dry_run(data, tokenizer, args, trainer.tokens_per_batch)
            with contextlib.suppress(OSError):
                checkpoints.rmdir()  # the Trainer made it; one that holds checkpoints stays
            return
        if resume_from:
            trainer.load_best(resume_from / BEST_ADAPTER)
        callback = make_callback(trainer, resumed_settings, args.early_stopping_patience)
        trainer.add_callback(callback)
        begun = time.time()
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        train_seconds = time.time() - begun
        stop_if_signalled(callback.signal, checkpoints)
        summary, curve = finish(trainer, args, train_seconds)
        samples = complete_samples(trainer, tokenizer, data.validation, args.seed)
        if main_process:
            write_adapter(args, model, tokenizer, curve, samples, started, **data.identities, dataset_manifest=dataset_manifest,
                          quantization=args.quantization, precision=precision, device=device, tokens_per_batch=trainer.tokens_per_batch,
                          processes=settings.world_size, summary=summary,
                          counts={"train_examples": len(data.train), "validation_examples": len(data.validation),
                                  "replay_validation_examples": len(data.replay or ()),
                                  "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)})
            shutil.rmtree(checkpoints, ignore_errors=True)
            show_result(args, summary, started)
            if args.hf_repository:
                commit = push_folder(args.output_dir, args.hf_repository, "Add the LoRA adapter", delete=MERGED_MODEL)
                print(f"published {args.hf_repository} (commit {commit})")


def tokens_or_auto(text: str) -> int | str:
    """argparse type: a whole number of at least 1, or auto."""
    return text if text == "auto" else positive_int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("what is read and written")
    files.add_argument("--model_name_or_path", default="microsoft/phi-1_5", help="base model (default: %(default)s)")
    files.add_argument("--model_revision", help="branch, tag or commit of a hub model (default: main)")
    files.add_argument("--dataset", default="data/kotlin_prepared_dataset",
                       help="folder that preprocess_data.py wrote, or a hub data set (default: %(default)s)")
    files.add_argument("--replay_dataset", type=Path, help="JSON lines of prompt and completion in a language that the model knows and "
                                                           "must not forget (default: none)")
    files.add_argument("--output_dir", type=Path, default=Path("models/adapter"), help="the adapter (default: %(default)s)")
    files.add_argument("--hf_repository", help="publish the adapter to this hub repository (default: stay local)")
    files.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of an interrupted run")
    files.add_argument("--dry_run", action="store_true", help="build everything, show an example and the first batches, and stop")
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
    learn.add_argument("--lora_r", type=positive_int, default=64, help="rank of the adapters (default: %(default)s)")
    learn.add_argument("--lora_alpha", type=non_negative_int, default=0,
                       help="adapters are scaled by lora_alpha / lora_r; 0: twice --lora_r (default: %(default)s)")
    learn.add_argument("--lora_dropout", type=fraction, default=0.0, help="(default: %(default)s)")
    learn.add_argument("--lora_target_modules", nargs="+", default=["all-linear"],
                       help="names of the layers with adapters; all-linear: every linear layer but the head (default: %(default)s)")
    learn.add_argument("--use_rslora", action="store_true", help="scale adapters by lora_alpha / sqrt(lora_r)")
    learn.add_argument("--learning_rate", type=float, default=1e-3, help="its highest value (default: %(default)s)")
    learn.add_argument("--lr_scheduler_type", choices=("cosine", "linear", "constant_with_warmup"), default="cosine",
                       help=f"after a warm-up over {WARMUP_RATIO:.0%}% of the steps (default: %(default)s)")
    learn.add_argument("--examples_per_step", type=positive_int, default=16,
                       help="examples in one optimizer step, over all processes (default: %(default)s)")
    learn.add_argument("--num_train_epochs", type=float, default=1.0, help="(default: %(default)s)")
    learn.add_argument("--max_steps", type=non_negative_int, default=0,
                       help="optimizer steps, in place of --num_train_epochs; 0: by epochs (default: %(default)s)")
    learn.add_argument("--replay_fraction", type=fraction, default=0.0,
                       help=f"share of the training examples that come from --replay_dataset, in addition to the others; 0: "
                            f"{DEFAULT_REPLAY_FRACTION} if there is one (default: %(default)s)")
    learn.add_argument("--early_stopping_patience", type=non_negative_int, default=0,
                       help="end after so many validations without a lower loss; 0: never (default: %(default)s)")
    learn.add_argument("--max_length", type=positive_int, default=1024,
                       help="longest example, in tokens; longer ones lose the start of the prompt (default: %(default)s)")
    learn.add_argument("--seed", type=int, default=0, help="of the sample, the order and the adapters (default: %(default)s)")
    work = parser.add_argument_group("how it is computed and shown")
    work.add_argument("--tokens_per_batch", type=tokens_or_auto, default="auto",
                      help="padded tokens that pass through the model at once; auto: as many as the free memory takes; halved when "
                           "memory runs out (default: %(default)s)")
    work.add_argument("--gradient_checkpointing", action="store_true",
                      help="compute activations twice to save memory; turned on where one example does not fit without it")
    work.add_argument("--torch_compile", action="store_true",
                      help="compile the model's blocks first: a minute or more, which pays in long runs")
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
