"""Stage 4 of 5: merge a LoRA adapter into its base model, tensor by tensor, and publish the result.

Reads   --hf_repository     the adapter: a folder that train.py wrote, or a hub repository
        its base model      a folder or a hub model, safetensors only
Writes  models/merged/      the merged model with its tokenizer, in the base model's shards, and manifest.json

No GPU is needed.  Weights are read from the base model's files in blocks of rows; the product of the matching LoRA
matrices is added in float32, rounded once, and written straight to the output.  What is merged is
W + scale * B @ A with scale = lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (Hu et al. 2021; Kalajdzievski 2023).
For a hub repository the merged model goes to the same repository in one commit that also removes the adapter's files
there, because a later load would apply the adapter a second time; the adapter lives on in the branch `adapter`.

Memory: a few blocks of 64 MB and the adapter, whatever the model's size; with --base nf4 the largest quantized
matrix in float32.  Time: that of reading and writing the weights once.

Run:    python merge_lora.py --hf_repository models/adapter
"""
import argparse
import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline_io import (
    MODEL_FILES,
    PipelineError,
    atomic_folder,
    check_hub_write,
    check_local_model,
    check_manifest,
    check_replaceable,
    combined_hash,
    duration,
    encode_prompts,
    hash_files,
    hub_errors,
    hub_files,
    load_tokenizer,
    looks_like_path,
    model_errors,
    output_lock,
    push_folder,
    quiet_libraries,
    read_manifest,
    run_stage,
    sha256_file,
    write_manifest,
)

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER_BRANCH = "adapter"
PREFIX = "base_model.model."  # what PEFT puts before the names of the base model's modules
LORA_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
BLOCK_ELEMENTS = 16 << 20  # of a tensor in float32: 64 MB
# What PEFT can do besides plain LoRA and this merge does not: refused by name rather than left out silently.
UNSUPPORTED_SETTINGS = ("use_dora", "modules_to_save", "layer_replication", "trainable_token_indices", "lora_bias", "megatron_config",
                        "eva_config", "corda_config", "alora_invocation_tokens", "target_parameters")
# In a repository of an adapter: what a merged model must not lie beside.
STALE_IN_REPOSITORY = re.compile(r"adapter_.*|(.*/)?training_args\.bin|(last-checkpoint|checkpoint-\d+)/.*|training_curve\..*|"
                                 r"optimizer\.pt|scheduler\.pt|rng_state.*\.pth")
COPIED_FROM_BASE = ("generation_config.json",)
# What the merge is checked on, and how far it may be off.  A model of 135M parameters that is merged and run in bf16 has
# a KL of 0.002 (measured); the bounds are to catch an adapter that is left out, or applied twice, not to grade rounding.
VERIFY_PROMPTS = (
    "package demo\n\nimport kotlin.math.max\n\nclass Counter(private val limit: Int) {\n    private var value = 0\n\n    fun add(n: Int",
    "/** Returns the longest of the given words. */\nfun longest(words: List<String>): String? =\n    words.maxByOrNull",
    "def mean(values):\n    \"\"\"Return the arithmetic mean of the values.\"\"\"\n    if not values:\n        raise ValueError",
)
MAX_KL, MIN_AGREEMENT = 0.02, 0.9


@dataclass
class LoraPair:
    """The adapter of one module: A of shape (r, inputs), B of shape (outputs, r), both float32, and the scale."""
    a: Any
    b: Any
    scale: float
    module: str
    transposed: bool = False  # the module stores its weight as (inputs, outputs), as GPT-2's Conv1D does
    quantized: bool = True  # training with NF4 quantizes the module: all linear layers but the head


# ---------------------------------------------------------------------------------------------------------------
# The adapter
# ---------------------------------------------------------------------------------------------------------------

def fetch_adapter(repository: str, revision: str | None) -> Path:
    """Return the local folder of the adapter; nothing but safetensors and JSON is downloaded."""
    folder = Path(repository)
    if not folder.is_dir():
        if looks_like_path(repository):
            raise PipelineError(f"--hf_repository {repository}: no such folder; name the adapter's folder or a hub repository")
        from huggingface_hub import snapshot_download

        with hub_errors("adapter", repository):
            hub_files(repository, revision)
            folder = Path(snapshot_download(repository, revision=revision,
                                            allow_patterns=["*.json", "*.jinja", "*.txt", ADAPTER_WEIGHTS], ignore_patterns=["*/*"]))
    if not (folder / ADAPTER_CONFIG).is_file():
        if (folder / "config.json").is_file():
            raise PipelineError(f"--hf_repository {repository}: is merged already (it holds a model and no adapter); nothing to do")
        raise PipelineError(f"--hf_repository {repository}: holds no {ADAPTER_CONFIG}; name a folder that train.py wrote")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise PipelineError(f"--hf_repository {repository}: holds no {ADAPTER_WEIGHTS}; pickled weights are not loaded")
    if any(folder.glob("model*.safetensors")):
        raise PipelineError(f"--hf_repository {repository}: holds an adapter and merged weights side by side, and a load would "
                            "apply the adapter twice; move one of them away")
    return folder


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the adapter's configuration; PipelineError where it asks for more than plain LoRA."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except ValueError:
        raise PipelineError(f"{folder / ADAPTER_CONFIG}: not valid JSON; train or download the adapter again") from None
    if config.get("peft_type") != "LORA":
        raise PipelineError(f"{folder / ADAPTER_CONFIG}: peft_type is {config.get('peft_type')!r}; only LORA can be merged")
    for setting in UNSUPPORTED_SETTINGS:
        if config.get(setting):
            raise PipelineError(f"{folder / ADAPTER_CONFIG}: {setting} is set, which cannot be merged here; nothing was written")
    if config.get("bias", "none") != "none":
        raise PipelineError(f"{folder / ADAPTER_CONFIG}: bias is {config['bias']!r}: trained biases cannot be merged here")
    return config


def lora_scale(config: dict[str, Any], module: str) -> float:
    """Return the scale of the adapter of `module`, with rank_pattern and alpha_pattern as PEFT reads them."""
    def setting(pattern_name: str, default: str) -> float:
        patterns = config.get(pattern_name) or {}
        match = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
        return patterns[match] if match else config[default]

    rank, alpha = setting("rank_pattern", "r"), setting("alpha_pattern", "lora_alpha")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def read_adapter(folder: Path, config: dict[str, Any]) -> dict[str, LoraPair]:
    """Return {name of the base model's module: its adapter}; PipelineError names a tensor that is neither A nor B."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    sides: dict[str, dict[str, Any]] = {}
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: not a whole safetensors file ({error}); train or download it again") from None
    for name, tensor in tensors.items():
        match = LORA_TENSOR.fullmatch(name.removeprefix(PREFIX))
        if not match or not name.startswith(PREFIX) or tensor.ndim != 2:
            raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: tensor {name} cannot be merged here; nothing was written")
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    pairs = {}
    for module, found in sides.items():
        if set(found) != {"A", "B"}:
            missing = "B" if "A" in found else "A"
            raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: {module} has no lora_{missing}; the file is not complete")
        if found["A"].shape[0] != found["B"].shape[1]:
            raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: the ranks of {module}'s matrices differ; the file is damaged")
        pairs[module] = LoraPair(found["A"], found["B"], lora_scale(config, module), module)
    return pairs


# ---------------------------------------------------------------------------------------------------------------
# The base model's files
# ---------------------------------------------------------------------------------------------------------------

@dataclass
class StoredTensor:
    """Where a tensor lies in a safetensors file."""
    file: Path
    name: str
    dtype: Any  # torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    size: int  # in bytes


def stored_dtype(name: str) -> Any:
    """Return the torch dtype of a safetensors dtype name, or None if there is no such floating-point or integer type."""
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
            "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}.get(name)


def safetensors_dtype(dtype: Any) -> str:
    """Return the safetensors name of a torch dtype."""
    return next(name for name in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL") if stored_dtype(name) == dtype)


def list_tensors(file: Path) -> list[StoredTensor]:
    """Return the tensors of a safetensors file in the order of their bytes.

    The library checks the header; the bytes are then read by offset, because the pages of its memory map would count
    as this process's memory.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise PipelineError(f"{file}: not a whole safetensors file ({error}); download it again") from None
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if stored_dtype(entry["dtype"]) is None:
            raise PipelineError(f"{file}: tensor {name} is of type {entry['dtype']}, which cannot be merged here")
        tensors.append(StoredTensor(file, name, stored_dtype(entry["dtype"]), tuple(entry["shape"]), 8 + length + begin, end - begin))
    return sorted(tensors, key=lambda t: t.offset)


def fetch_base(name: str, revision: str | None) -> Path:
    """Return the local folder of the base model; only safetensors and JSON are downloaded."""
    check_local_model(name)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        with hub_errors("base model", name):
            hub_files(name, revision)
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"],
                                            ignore_patterns=["*/*"]))
    if (folder / ADAPTER_CONFIG).is_file():
        raise PipelineError(f"base model {name}: holds an adapter itself; merge that one first")
    if not base_shards(folder):
        raise PipelineError(f"base model {name}: holds no model*.safetensors; pickled weights are not loaded")
    return folder


def base_shards(folder: Path) -> list[Path]:
    """Return the model's weight files: those that its index names, or the single one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise PipelineError(f"{index}: names weights outside its folder; do not use this model")
        return [folder / name for name in names]
    return [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []


def locate_targets(pairs: dict[str, LoraPair], tensors: list[StoredTensor], folder: Path, nf4: bool) -> dict[str, LoraPair]:
    """Return {name of the stored tensor: adapter}, each adapter once, with `transposed` set and all shapes checked.

    With `nf4`, the layers that training quantized without giving them an adapter get one of rank 0.

    The model is built without memory (on torch's meta device) to see which modules exist and which are GPT-2's
    Conv1D.  A file may leave out the first part of the modules' names (`transformer.`), as old ones do.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with model_errors(str(folder)), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False)
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    if nf4:
        linear = {name: layer for name, layer in modules.items() if isinstance(layer, (torch.nn.Linear, Conv1D)) and layer is not head}
        shapes = {name: layer.weight.T.shape if isinstance(layer, Conv1D) else layer.weight.shape for name, layer in linear.items()}
        pairs = {name: LoraPair(torch.zeros(0, shape[1]), torch.zeros(shape[0], 0), 0.0, name) for name, shape in shapes.items()} | pairs
    stored = {tensor.name: tensor for tensor in tensors}
    targets: dict[str, LoraPair] = {}
    for module, pair in pairs.items():
        if module not in modules:
            raise PipelineError(f"the adapter's module {module} does not exist in {folder}; is this the right base model?")
        weight = next((w for w in (f"{module}.weight", f"{module.partition('.')[2]}.weight") if w in stored), None)
        if weight is None or weight in targets:
            raise PipelineError(f"the weight of the adapter's module {module} is not in the files of {folder}; nothing was written")
        pair.transposed = isinstance(modules[module], Conv1D)
        pair.quantized = modules[module] is not head
        shape = (pair.b.shape[0], pair.a.shape[1])
        if stored[weight].shape != (shape[::-1] if pair.transposed else shape):
            raise PipelineError(f"the adapter of {module} is for a weight of shape {shape}, but {folder} has {stored[weight].shape}; "
                                "is this the right base model?")
        targets[weight] = pair
    return targets


# ---------------------------------------------------------------------------------------------------------------
# Merging
# ---------------------------------------------------------------------------------------------------------------

def read_rows(tensor: StoredTensor, stream: IO) -> Iterator[tuple[int, Any]]:
    """Yield (first row, rows) of a stored tensor in blocks of at most BLOCK_ELEMENTS elements; a scalar is one row."""
    import torch

    rows = tensor.shape[0] if tensor.shape else 1
    row_shape = tensor.shape[1:]
    row_bytes = tensor.size // max(1, rows)
    count = max(1, BLOCK_ELEMENTS * tensor.dtype.itemsize // max(1, row_bytes))
    stream.seek(tensor.offset)
    for first in range(0, rows, count):
        number = min(count, rows - first)
        block = bytearray(number * row_bytes)
        if stream.readinto(block) != len(block):
            raise PipelineError(f"{tensor.file}: ends within tensor {tensor.name}; download it again")
        if block:
            yield first, torch.frombuffer(block, dtype=tensor.dtype).reshape(number, *row_shape)


def merged_rows(tensor: StoredTensor, pair: LoraPair | None, dtype: Any, nf4: bool, stream: IO) -> Iterator[Any]:
    """Yield the output tensor's rows, block by block, in `dtype` (integers keep their own)."""
    if pair is not None and nf4 and pair.quantized:
        yield merge_rows(dequantized_nf4(tensor, stream, pair.transposed), pair, 0).to(dtype)
        return
    for first, block in read_rows(tensor, stream):
        if pair is not None:
            block = merge_rows(block.float(), pair, first)
        yield block.to(dtype) if block.is_floating_point() else block


def merge_rows(rows: Any, pair: LoraPair, first: int) -> Any:
    """Return float32 `rows` of a weight, of which `first` is the number of the first, plus their part of scale * B @ A."""
    last = first + len(rows)
    left, right = (pair.a.T[first:last], pair.b.T) if pair.transposed else (pair.b[first:last], pair.a)
    return rows.addmm_(left, right, alpha=pair.scale)


def dequantized_nf4(tensor: StoredTensor, stream: IO, transposed: bool) -> Any:
    """Return a stored weight in float32 as training with NF4 saw it, by bitsandbytes' own quantization."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.cat([block for _, block in read_rows(tensor, stream)])
    packed, state = quantize_4bit(weight.T.contiguous() if transposed else weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    restored = dequantize_4bit(packed, state).float()
    return restored.T.contiguous() if transposed else restored


def write_shard(file: Path, tensors: list[StoredTensor], targets: dict[str, LoraPair], dtype: Any, nf4: bool,
                advance: Callable[[int], Any]) -> tuple[dict[str, int], dict[str, str]]:
    """Write one safetensors file, streaming; return {tensor: size in bytes}, and {tensor: SHA-256} of those that were merged.

    The format: 8 bytes with the header's length, the header as JSON, the tensors' bytes in the order of the header.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    sizes: dict[str, int] = {}
    hashes: dict[str, str] = {}
    position = 0
    for tensor in tensors:
        kind = (dtype or tensor.dtype) if tensor.dtype.is_floating_point else tensor.dtype
        sizes[tensor.name] = tensor.size // tensor.dtype.itemsize * kind.itemsize
        header[tensor.name] = {"dtype": safetensors_dtype(kind), "shape": list(tensor.shape),
                               "data_offsets": [position, position + sizes[tensor.name]]}
        position += sizes[tensor.name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8, as the library's own files do
    with open(file, "wb") as out, open(tensors[0].file, "rb", buffering=0) as stream:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            digest = hashlib.sha256()
            for rows in merged_rows(tensor, targets.get(tensor.name), dtype or tensor.dtype, nf4, stream):
                data = rows.contiguous().flatten().view(torch.uint8).numpy().data
                out.write(data)
                if tensor.name in targets:
                    digest.update(data)
            if tensor.name in targets:
                hashes[tensor.name] = digest.hexdigest()
            advance(tensor.size)
    return sizes, hashes


def write_model(base: Path, adapter: Path, folder: Path, targets: dict[str, LoraPair], shards: list[list[StoredTensor]],
                dtype_name: str, nf4: bool) -> dict[str, str]:
    """Fill `folder` with the merged weights, the index, the configuration and the adapter's tokenizer.

    Returns {tensor: SHA-256 of its bytes} of the tensors that were merged.
    """
    import torch
    from tqdm import tqdm

    dtype = None if dtype_name == "base" else getattr(torch, dtype_name)
    weight_map: dict[str, str] = {}
    merged: dict[str, str] = {}
    total_size = 0
    with tqdm(total=sum(t.size for shard in shards for t in shard), unit="B", unit_scale=True, desc="merging", disable=None) as bar:
        for tensors in shards:
            name = tensors[0].file.name
            sizes, hashes = write_shard(folder / name, tensors, targets, dtype, nf4, bar.update)
            merged |= hashes
            weight_map.update(dict.fromkeys(sizes, name))
            total_size += sum(sizes.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = json.loads((base / "config.json").read_bytes())
    for key in ("auto_map", "quantization_config", "_name_or_path", "torch_dtype"):  # remote code, and what is no longer true
        config.pop(key, None)
    stored = {t.dtype for shard in shards for t in shard if t.dtype.is_floating_point}
    config["dtype"] = str(dtype or max(stored, key=lambda kind: kind.itemsize)).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED_FROM_BASE:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    load_tokenizer(str(adapter if (adapter / "tokenizer_config.json").is_file() else base)).save_pretrained(str(folder))
    return merged


def model_card(name: str, base_name: str, merged_into: str, adapter_config: dict[str, Any], manifest: dict[str, Any] | None) -> str:
    """Return the merged model's README.md: base, data, training settings, how to load it.

    Local paths are left out: they say nothing to a reader of the hub, and something about the machine.
    """
    training = (manifest or {}).get("arguments", {})
    base = base_name if not looks_like_path(base_name) and not Path(base_name).exists() else None
    dataset = training.get("dataset")
    dataset = dataset if dataset and dataset.count("/") == 1 and not Path(dataset).exists() and dataset.split("/")[0] != "data" else None
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- code", "- lora"]
    lines += [f"base_model: {base}", "base_model_relation: finetune"] if base else []
    lines += ["datasets:", f"- {dataset}"] if dataset else []
    lines += ["---", f"# {name}", "",
              f"{base or 'A language model'}, fine-tuned to complete code by LoRA (rank {adapter_config['r']}, alpha "
              f"{adapter_config['lora_alpha']}); the adapter is merged into the base model's "
              f"{'weights' if merged_into == 'checkpoint' else 'weights as NF4 quantizes them'}.", "",
              "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
              f'tokenizer = AutoTokenizer.from_pretrained("{name}")', f'model = AutoModelForCausalLM.from_pretrained("{name}")',
              'prompt = tokenizer("fun main() {", return_tensors="pt")',
              "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))", "```", ""]
    shown = ("max_train_samples", "num_train_epochs", "examples_per_step", "learning_rate", "lr_scheduler_type", "quantization", "seed")
    if training:
        lines += ["## Training", "", "| | |", "|---|---:|", *(f"| {key} | {training[key]} |" for key in shown if key in training)]
    summary = (manifest or {}).get("summary", {})
    lines += [f"| {key.replace('_', ' ')} (nats a token) | {summary[key]:.4f} |"
              for key in ("validation_loss_before", "validation_loss_after") if key in summary]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------
# Proof
# ---------------------------------------------------------------------------------------------------------------

def enough_memory_to_verify(shards: list[list[StoredTensor]]) -> bool:
    """Return whether the model in float32, with as much again to spare, fits into the memory that is available now."""
    elements = sum(t.size // t.dtype.itemsize for shard in shards for t in shard)
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 2 * 4 * elements < 1024 * int(line.split()[1])
    return False


def verify(base: Path, adapter: Path, merged: Path, targets: dict[str, LoraPair], shards: list[list[StoredTensor]],
           nf4: bool) -> dict[str, float]:
    """Compare base + adapter, in float32, with the merged model as it is loaded from disk, on VERIFY_PROMPTS.

    Returns the largest difference of a logit, the share of positions with the same top token, and the mean KL divergence
    in nats.  Raises PipelineError above MAX_KL or below MIN_AGREEMENT: rounding to bf16 alone stays far within both.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(merged))
    prompts = [torch.tensor([ids]) for ids in encode_prompts(tokenizer, list(VERIFY_PROMPTS))]

    def log_probabilities(model: Any) -> list[Any]:
        with torch.inference_mode():
            return [model.eval()(input_ids=ids).logits[0].float() for ids in prompts]

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    if nf4:
        parameters = {name.removesuffix(".weight"): parameter for name, parameter in model.named_parameters()}
        for tensor in (t for shard in shards for t in shard if t.name in targets and targets[t.name].quantized):
            with open(tensor.file, "rb") as stream, torch.no_grad():
                pair = targets[tensor.name]
                parameters[pair.module].copy_(dequantized_nf4(tensor, stream, pair.transposed))
    expected = log_probabilities(PeftModel.from_pretrained(model, adapter))
    del model
    found = log_probabilities(AutoModelForCausalLM.from_pretrained(merged, dtype="auto", trust_remote_code=False, use_safetensors=True))
    a, b = torch.cat(expected), torch.cat(found)
    divergence = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean").item()
    proof = {"max_logit_difference": round((a - b).abs().max().item(), 5),
             "top_token_agreement": round((a.argmax(-1) == b.argmax(-1)).float().mean().item(), 4),
             "kl_nats": round(max(0.0, divergence), 6)}
    if not divergence <= MAX_KL or proof["top_token_agreement"] < MIN_AGREEMENT:
        raise PipelineError(f"the merged model is not base + adapter: {proof}, allowed are kl_nats up to {MAX_KL} and "
                            f"top_token_agreement from {MIN_AGREEMENT}; nothing was written or published. Try --dtype float32")
    return proof


# ---------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------

def is_merged_repository(name: str) -> bool:
    """Return whether a hub repository holds a merged model and no adapter."""
    with hub_errors("model", name):
        _, names = hub_files(name)
    return ADAPTER_CONFIG not in names and "config.json" in names


def choose_base(args: argparse.Namespace, config: dict[str, Any], adapter: Path) -> tuple[str, str | None]:
    """Return name and revision of the base model: --base_model, or what the adapter names."""
    named = config.get("base_model_name_or_path")
    if args.base_model:
        return args.base_model, None
    if not named:
        raise PipelineError(f"{adapter / ADAPTER_CONFIG}: names no base model; say which by --base_model")
    if not Path(args.hf_repository).is_dir() and looks_like_path(named):
        raise PipelineError(f"--hf_repository {args.hf_repository}: its adapter names a local path as its base model; "
                            "say which base by --base_model")
    return named, config.get("revision")


def check_trained_base(manifest: dict[str, Any] | None, name: str, base: Path) -> None:
    """Raise PipelineError where the base model is not, by its weights or its commit, the one that train.py wrote into the manifest."""
    expected = (manifest or {}).get("base_model_hash")
    if not expected:
        return  # an adapter from elsewhere
    if Path(name).is_dir():
        found = combined_hash({file.name: sha256_file(file) for file in sorted(base.glob("*.safetensors"))})
    else:
        found = base.name  # the hub's cache names a snapshot's folder for its commit
    if found != expected:
        raise PipelineError(f"base model {name}: is not the one that the adapter was trained on ({found[:12]}, not {expected[:12]}); "
                            f"get that one, or say --base_model {name} to merge into this one all the same")


def merge(args: argparse.Namespace) -> None:
    """Merge the adapter of --hf_repository into its base model, write it to --output_dir, publish it for a hub name."""
    started = time.time()
    on_hub = not Path(args.hf_repository).is_dir() and not looks_like_path(args.hf_repository)
    if Path(args.hf_repository).resolve() == args.output_dir.resolve() or (args.output_dir / ADAPTER_CONFIG).is_file():
        raise PipelineError(f"--output_dir {args.output_dir}: holds an adapter; merged weights beside it would get the adapter "
                            "applied a second time when they are loaded; choose another folder")
    check_replaceable(args.output_dir, "config.json")
    if on_hub:
        check_hub_write(args.hf_repository)
        if is_merged_repository(args.hf_repository):
            print(f"{args.hf_repository} is merged already; nothing to do (the adapter is in its branch {ADAPTER_BRANCH})")
            return
    adapter = fetch_adapter(args.hf_repository, None)
    if not on_hub:
        check_manifest(adapter, MODEL_FILES)
    config = read_adapter_config(adapter)
    base_name, base_revision = choose_base(args, config, adapter)
    base = fetch_base(base_name, base_revision)
    if not args.base_model:
        check_trained_base(read_manifest(adapter), base_name, base)
    quiet_libraries()
    pairs = read_adapter(adapter, config)
    shards = [tensors for file in base_shards(base) if (tensors := list_tensors(file))]
    targets = locate_targets(pairs, [tensor for shard in shards for tensor in shard], base, args.base == "nf4")
    needed = sum(t.size for shard in shards for t in shard) * (2 if args.dtype == "float32" else 1)
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(args.output_dir.parent).free < needed:
        raise PipelineError(f"--output_dir {args.output_dir}: {needed / 1e9:.1f} GB are needed and not free; free some space")
    print(f"base model {base_name} ({'its NF4 values' if args.base == 'nf4' else 'its checkpoint'}), {len(pairs)} matrices to merge")
    with output_lock(args.output_dir), atomic_folder(args.output_dir) as folder:
        merged = write_model(base, adapter, folder, targets, shards, args.dtype, args.base == "nf4")
        name = args.hf_repository if on_hub else args.output_dir.name
        (folder / "README.md").write_text(model_card(name, base_name, args.base, config, read_manifest(adapter)), encoding="utf-8")
        proof = None
        if args.verify == "on" or (args.verify == "auto" and enough_memory_to_verify(shards)):
            proof = verify(base, adapter, folder, targets, shards, args.base == "nf4")
            print(f"verified against base + adapter: largest difference of a logit {proof['max_logit_difference']:.3g}, same top token at "
                  f"{proof['top_token_agreement']:.1%} of the positions, KL {proof['kl_nats']:.2g} nats")
        else:
            print("not verified" + (": too little memory for it (--verify on tries all the same)" if args.verify == "auto" else ""))
        write_manifest(folder / "manifest.json", args, hash_files(folder), started, base_model=base_name,
                       inputs={ADAPTER_WEIGHTS: sha256_file(adapter / ADAPTER_WEIGHTS)}, merged_into=args.base, verification=proof,
                       merged_tensors=merged, adapter_manifest=read_manifest(adapter), counts={"merged_matrices": len(pairs)})
    print(f"wrote {args.output_dir} in {duration(time.time() - started)}")
    if on_hub:
        commit = push_folder(args.output_dir, args.hf_repository, "Merge the adapter into the base model",
                             delete=STALE_IN_REPOSITORY, keep_branch=ADAPTER_BRANCH)
        print(f"published {args.hf_repository} (commit {commit}); the adapter is in its branch {ADAPTER_BRANCH}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf_repository", required=True, help="the adapter: a folder that train.py wrote, or a hub repository, "
                                                               "to which the merged model is published")
    parser.add_argument("--base_model", help="base model to merge into (default: the one that the adapter names)")
    parser.add_argument("--base", choices=("checkpoint", "nf4"), default="checkpoint",
                        help="merge into the checkpoint's weights, or into what NF4 makes of them (default: %(default)s)")
    parser.add_argument("--dtype", choices=("base", "bfloat16", "float16", "float32"), default="base",
                        help="type of the merged weights; base: that of the base model's files (default: %(default)s)")
    parser.add_argument("--verify", choices=("auto", "on", "off"), default="auto",
                        help="compare the result with base + adapter before it is kept; auto: if memory allows (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("models/merged"), help="the merged model (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(merge, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
