"""The adapter: where it lies, what its configuration asks for, and its matrices."""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.hub.client import hub_errors, hub_files
from pipeline.model.mergeable import ADAPTER_CONFIG, check_plain_lora, read_adapter_json, trained_tokens
from pipeline.run.errors import PipelineError, looks_like_path

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before the names of the base model's modules
LORA_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
TOKEN_TENSOR = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta")


@dataclass
class LoraPair:
    """The adapter of one module."""
    a: Any  # float32, of shape (r, inputs)
    b: Any  # float32, of shape (outputs, r)
    scale: float
    module: str
    transposed: bool = False  # the module stores its weight as (inputs, outputs), as GPT-2's Conv1D does
    quantized: bool = True  # training with NF4 quantizes the module: all linear layers but the head


@dataclass
class TokenRows:
    """Embeddings of tokens that were trained: they take the place of the base model's."""
    tokens: list[int]
    rows: Any  # float32, of shape (tokens, hidden size)
    module: str
    quantized: bool = False  # NF4 leaves embeddings and head alone


def is_merged_repository(name: str) -> bool:
    """Return whether a hub repository holds a merged model and no adapter."""
    with hub_errors("model", name):
        _, names = hub_files(name)
    return ADAPTER_CONFIG not in names and "config.json" in names


def fetch_adapter(repository: str, revision: str | None) -> Path:
    """Return the local folder of the adapter; only safetensors, JSON and the tokenizer are downloaded."""
    folder = Path(repository)
    if not folder.is_dir():
        if looks_like_path(repository):
            raise PipelineError(f"--hf_repository {repository}: no such folder; name the adapter's folder or "
                                "a hub repository")
        with hub_errors("adapter", repository):
            hub_files(repository, revision)
            folder = Path(snapshot_download(repository, revision=revision,
                                            allow_patterns=["*.json", "*.jinja", "*.txt", "*.model",
                                                            "*.tiktoken", ADAPTER_WEIGHTS],
                                            ignore_patterns=["*/*"]))
    if not (folder / ADAPTER_CONFIG).is_file():
        if (folder / "config.json").is_file():
            raise PipelineError(f"--hf_repository {repository}: is merged already (it holds a model and no "
                                "adapter); nothing to do")
        raise PipelineError(f"--hf_repository {repository}: holds no {ADAPTER_CONFIG}; name a folder that "
                            "train.py wrote")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise PipelineError(f"--hf_repository {repository}: holds no {ADAPTER_WEIGHTS}; pickled weights are "
                            "not loaded")
    if any(folder.glob("model*.safetensors")):
        raise PipelineError(f"--hf_repository {repository}: holds an adapter and merged weights side by "
                            "side, and a load would apply the adapter twice; move one of them away")
    return folder


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the adapter's configuration; PipelineError where it asks for more than plain LoRA."""
    config = read_adapter_json(folder)
    check_plain_lora(config, str(folder / ADAPTER_CONFIG))
    return config


def lora_scale(config: dict[str, Any], module: str) -> float:
    """Return the scale of the adapter of `module`, with rank_pattern and alpha_pattern as PEFT reads them."""
    def setting(pattern_name: str, default: str) -> float:
        patterns = config.get(pattern_name) or {}
        match = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
        return patterns[match] if match else config[default]

    rank, alpha = setting("rank_pattern", "r"), setting("alpha_pattern", "lora_alpha")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def load_tensors(folder: Path) -> dict[str, Any]:
    """Return the tensors of an adapter's file; PipelineError where it is not whole."""
    try:
        return load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: not a whole safetensors file ({error}); train or "
                            "download it again") from None


def read_token_rows(folder: Path, config: dict[str, Any]) -> TokenRows | None:
    """Return the embeddings that were trained with the adapter; None without any.

    Raises PipelineError where they are more than rows of one layer, or are not those that the configuration
    names.
    """
    layers = trained_tokens(config, str(folder / ADAPTER_CONFIG))
    found = {match["module"].removeprefix(PREFIX): tensor for name, tensor in load_tensors(folder).items()
             if (match := TOKEN_TENSOR.fullmatch(name))}
    if not layers and not found:
        return None
    if len(layers) != 1 or len(found) != 1:
        raise PipelineError(f"{folder}: {len(layers)} layers with trained tokens are named and {len(found)} "
                            "are there; those of the input embedding alone can be merged; nothing was "
                            "written")
    [(layer, tokens)], [(module, rows)] = layers.items(), found.items()
    if (layer and module.rpartition(".")[2] != layer.rpartition(".")[2]) or rows.ndim != 2 \
            or len(rows) != len(tokens):
        raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: the trained tokens of {module} are not those that "
                            f"{ADAPTER_CONFIG} names; train or download the adapter again")
    return TokenRows(tokens, rows.float(), module)


def read_adapter(folder: Path, config: dict[str, Any]) -> dict[str, LoraPair]:
    """Return {name of the base model's module: its adapter}.

    Raises PipelineError naming a tensor that is neither A nor B, nor an embedding (`read_token_rows`).
    """
    sides: dict[str, dict[str, Any]] = {}
    for name, tensor in load_tensors(folder).items():
        if TOKEN_TENSOR.fullmatch(name):
            continue
        match = LORA_TENSOR.fullmatch(name.removeprefix(PREFIX))
        if not match or not name.startswith(PREFIX) or tensor.ndim != 2:
            raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: tensor {name} cannot be merged here; nothing "
                                "was written")
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    pairs = {}
    for module, found in sides.items():
        if set(found) != {"A", "B"}:
            missing = "B" if "A" in found else "A"
            raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: {module} has no lora_{missing}; the file is "
                                "not complete")
        if found["A"].shape[0] != found["B"].shape[1]:
            raise PipelineError(f"{folder / ADAPTER_WEIGHTS}: the ranks of {module}'s matrices differ; the "
                                "file is damaged")
        pairs[module] = LoraPair(found["A"], found["B"], lora_scale(config, module), module)
    return pairs
