"""What can be merged: an adapter's settings, its base model, and the layers that it sits on.

merge_lora.py asks before it writes, and train.py before it trains: hours later is too late.
"""
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from pipeline.hub.client import hub_errors
from pipeline.model.tokenizers import check_local_model, model_errors
from pipeline.model.weight_files import StoredTensor, stored_tensors
from pipeline.run.errors import PipelineError, looks_like_path

ADAPTER_CONFIG = "adapter_config.json"
# PEFT's settings that a plain adapter may have.  Any other that is set asks for more than W + scale * B @ A,
# in this version of PEFT or a later one: refused by name rather than left out silently.
PLAIN_SETTINGS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "trainable_token_indices", "use_rslora"}
# How A and B may have begun.  PiSSA, OLoRA, CorDA and LoftQ also change the base's weights, which are then no
# longer those of the base model's files.
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal")
OTHER_INPUTS = {"vision", "audio", "image", "video", "vq"}  # in the names of a configuration's parts


def read_adapter_json(folder: Path) -> dict[str, Any]:
    """Return what an adapter's configuration says; PipelineError where it is damaged."""
    file = folder / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise PipelineError(f"{file}: not valid JSON; train or download the adapter again") from None
    if not isinstance(config, dict):
        raise PipelineError(f"{file}: is not an adapter's configuration (a JSON object); train or download "
                            "the adapter again")
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(name), str | None):
            raise PipelineError(f"{file}: {name} is {config[name]!r}, which is no name; mend it, or train or "
                                "download the adapter again")
    return config


def check_plain_lora(config: dict[str, Any], where: str) -> None:
    """Raise PipelineError where an adapter's settings are damaged or ask for more than plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise PipelineError(f"{where}: peft_type is {config.get('peft_type')!r}; only LORA can be merged")
    _check_numbers(config, where)
    beginning = config.get("init_lora_weights", True)
    if beginning not in PLAIN_BEGINNINGS:
        raise PipelineError(f"{where}: init_lora_weights is {beginning!r}: such an adapter may belong to "
                            "other weights than those of the base model's files, and cannot be merged into "
                            "them; let PEFT save it as plain LoRA (save_pretrained with "
                            "path_initial_model_for_weight_conversion); nothing was written")
    if config.get("bias") not in (None, "none"):
        raise PipelineError(f"{where}: bias is {config['bias']!r}: trained biases cannot be merged here")
    trained_tokens(config, where)
    for setting in sorted(set(config) - PLAIN_SETTINGS):
        if config[setting]:
            raise PipelineError(f"{where}: {setting} is set, which cannot be merged here; nothing was "
                                "written")


def trained_tokens(config: dict[str, Any], where: str) -> dict[str | None, list[int]]:
    """Return {layer: tokens} of the embeddings that were trained with an adapter, the layer None where that
    is the input embedding; PipelineError where the setting is damaged."""
    setting = config.get("trainable_token_indices") or {}
    layers = setting if isinstance(setting, dict) else {None: setting}
    for tokens in layers.values():
        whole = isinstance(tokens, list) and all(type(token) is int and token >= 0 for token in tokens)
        if not whole or not tokens or len(set(tokens)) < len(tokens):
            raise PipelineError(f"{where}: trainable_token_indices is {setting!r}, not numbers of tokens, "
                                "each once; train or download the adapter again")
    return layers


def _check_numbers(config: dict[str, Any], where: str) -> None:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    def is_rank(value: Any) -> bool:
        return is_number(value) and value == int(value) and value > 0

    for name, pattern_name, fits, kind in (("r", "rank_pattern", is_rank, "a whole number above 0"),
                                           ("lora_alpha", "alpha_pattern", is_number, "a number")):
        patterns = config.get(pattern_name) or {}
        if not isinstance(patterns, dict):
            raise PipelineError(f"{where}: {pattern_name} is {patterns!r}, not names and numbers; train or "
                                "download the adapter again")
        for place, value in ((name, config.get(name)), *patterns.items()):
            if not fits(value):
                raise PipelineError(f"{where}: {place} is {value!r}, not {kind}; train or download the "
                                    "adapter again")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error:
                raise PipelineError(f"{where}: {pattern_name} holds {pattern!r}, which is no pattern; train "
                                    "or download the adapter again") from None


def check_base(source: str, revision: str | None, name: str, flag: str) -> None:
    """Raise PipelineError where the model in the folder or repository `source` is one into which nothing can
    be merged: its weights are stored quantized, or it reads more than text.

    `name` is what the user calls it, `flag` says by what another one is given.
    """
    check_local_model(source)
    _check_no_adapter(Path(source), name)
    with model_errors(name):
        raw, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    quantization = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if quantization:
        of = quantization.get("quant_method") or "quantized"
        bits = quantization.get("bits") or (4 if quantization.get("load_in_4bit") else None)
        raise PipelineError(f"base model {name}: its weights are stored {f'in {bits} bits ' if bits else ''}"
                            f"({of}), and an adapter can only be merged into 16 or 32; give the model that "
                            f"they were made from {_whole_model(raw, name)}by {flag}")
    parts = [part for part in getattr(config, "sub_configs", {})
             if OTHER_INPUTS & set(part.split("_")) and getattr(config, part, None) is not None]
    if parts:
        raise PipelineError(f"base model {name}: reads more than text ({parts[0]}), which cannot be merged "
                            f"here; give a text model by {flag}")


def _whole_model(raw: dict[str, Any], name: str) -> str:
    """Return, in brackets, what a configuration says that its quantized weights were made from."""
    named = raw.get("_name_or_path")
    known = isinstance(named, str) and named and named != name and not looks_like_path(named)
    return f"({named}) " if known else ""


def _check_no_adapter(folder: Path, name: str) -> None:
    if (folder / ADAPTER_CONFIG).is_file():
        raise PipelineError(f"base model {name}: holds an adapter itself; merge that one first")


def base_tensors(folder: Path, name: str) -> list[list[StoredTensor]]:
    """Return the tensors of a base model's files, file by file; PipelineError where it is none."""
    _check_no_adapter(folder, name)
    if not (found := stored_tensors(folder)):
        raise PipelineError(f"base model {name}: holds no model*.safetensors; pickled weights are not loaded")
    return found


def loaded_folder(name: str, revision: str | None) -> Path:
    """Return the folder of a model that has been loaded: itself, or its place in the hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    with hub_errors("model", name):
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True)).parent


def linear_layers(model: Any) -> dict[str, Any]:
    """Return {name: module} of a model's linear layers (GPT-2's Conv1D too), all but the head: those that
    `all-linear` adapts and that NF4 quantizes."""
    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head}


def has_tied_head(model: Any) -> bool:
    """Return whether a model's output head has the weight of its input embedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return embedding is not None and head is not None and head.weight is embedding.weight


def stored_weight(module: str, model: Any, stored: dict[str, StoredTensor], where: Path) -> str:
    """Return the name of the stored tensor that is the weight of a module of `model`; PipelineError where an
    adapter of that module cannot be merged into the files in `where`.

    Old files leave out the first part of the modules' names (`transformer.`).
    """
    try:
        layer = model.get_submodule(module)
    except AttributeError:
        raise PipelineError(f"the adapter's module {module} does not exist in {where}; is this the right "
                            "base model?") from None
    if layer is model.get_output_embeddings() and has_tied_head(model):
        raise PipelineError(f"the adapter's module {module} is the output head, whose weight is that of the "
                            "embedding too: it cannot be merged; nothing was written")
    if not isinstance(layer, torch.nn.Linear | Conv1D):
        raise PipelineError(f"the adapter's module {module} is of type {type(layer).__name__}; only adapters "
                            "of linear layers can be merged; nothing was written")
    names = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
    weight = next((name for name in names if name in stored), None)
    if weight is None:
        raise PipelineError(f"the weight of the adapter's module {module} is not in the files of {where}; "
                            "nothing was written")
    return weight


def stored_embeddings(model: Any, stored: dict[str, StoredTensor], where: Path) -> tuple[str, list[str]]:
    """Return the module of a model's input embedding and the names of the stored tensors that hold its
    weight: one, or two where the output head shares it and the files have both.

    Raises PipelineError where rows of it cannot be replaced.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    module = next(name for name, found in model.named_modules() if found is embedding)
    tied = has_tied_head(model)
    # PEFT computes a tied head from its weight alone
    other_head = tied and (type(head) is not torch.nn.Linear or head.bias is not None)
    if not isinstance(embedding, torch.nn.Embedding) or other_head:
        raise PipelineError(f"{where}: its embedding ({type(embedding).__name__}), or the head that shares "
                            "its weight, is not a plain one; embeddings of tokens cannot be trained and "
                            "merged here: use tokens that the model knows, or another model")
    sides = [module, *(name for name, found in model.named_modules() if tied and found is head)]
    names = [next((name for name in (f"{side}.weight", f"{side.partition('.')[2]}.weight") if name in stored),
                  None) for side in sides]
    if (names[0] is None and not tied) or not any(names):
        raise PipelineError(f"the weight of the embedding {module} is not in the files of {where}; nothing "
                            "was written")
    return module, [name for name in names if name]
