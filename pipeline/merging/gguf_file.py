"""A merged model as a GGUF file, for llama.cpp and what stands on it: the Llama layout with a byte-level BPE.

Names of metadata and tensors are the package gguf's (github.com/ggml-org/ggml, docs/gguf.md).  Every other
architecture and tokenizer is refused: llama.cpp's own convert_hf_to_gguf.py knows them.
"""
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig

from pipeline.merging.weights import read_rows
from pipeline.model.mergeable import base_tensors
from pipeline.model.tokenizers import load_tokenizer, model_errors
from pipeline.model.weight_files import StoredTensor
from pipeline.prompts.fim_formats import beginning_of
from pipeline.run.errors import PipelineError
from pipeline.run.progress import progress

GGUF_FILE = "model.gguf"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
# How a text is cut before the merges, under llama.cpp's name for it.
PRE_TOKENIZERS = {"gpt-2": [BYTE_LEVEL], "smollm": [DIGITS, BYTE_LEVEL]}
KINDS = {torch.float32: gguf.GGMLQuantizationType.F32, torch.float16: gguf.GGMLQuantizationType.F16,
         torch.bfloat16: gguf.GGMLQuantizationType.BF16}


def check_gguf(folder: Path, name: str) -> None:
    """Raise PipelineError where the model in `folder`, or its tokenizer, is none that `write_gguf` can
    write."""
    with model_errors(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type != "llama":
        raise _refusal(f"{name} is of the architecture {config.model_type}, not llama")
    unlike = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    for key, expected in unlike.items():
        if getattr(config, key) != expected:
            raise _refusal(f"{name} has {key} {getattr(config, key)!r}")
    if config.rope_parameters.get("rope_type", "default") != "default":
        raise _refusal(f"{name} has positions of the type {config.rope_parameters['rope_type']}")
    tokenizer = load_tokenizer(str(folder))
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    pre_tokenizer(rules, name)
    if beginning_of(tokenizer) not in ((), (tokenizer.bos_token_id,)):
        raise _refusal(f"the tokenizer of {name} puts several tokens before a text")


def _refusal(what: str) -> PipelineError:
    return PipelineError(f"--gguf: {what}; leave --gguf out, and convert the merged model by llama.cpp's "
                         "convert_hf_to_gguf.py")


def pre_tokenizer(rules: dict[str, Any], name: str) -> str:
    """Return llama.cpp's name for how a tokenizer (its tokenizer.json) cuts a text; PipelineError where it
    is none that is known here."""
    model, steps = rules.get("model") or {}, rules.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    if model.get("type") == "BPE" and not (model.get("byte_fallback") or model.get("ignore_merges")
                                           or rules.get("normalizer")):
        for known, expected in PRE_TOKENIZERS.items():
            if len(steps) == len(expected) and all(wanted.items() <= step.items()
                                                   for wanted, step in zip(expected, steps, strict=True)):
                return known
    raise _refusal(f"the tokenizer of {name} is none that is known here")


def write_gguf(folder: Path) -> Path:
    """Write the model in `folder`, which `check_gguf` has passed, beside itself in its own precision, and
    return the file.

    Memory: one tensor in float32, twice.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tensors = [tensor for shard in base_tensors(folder, str(folder)) for tensor in shard]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(folder / GGUF_FILE, "llama")
    try:
        _add_settings(writer, config, max((kind_of(tensor) for tensor in tensors), key=_is_small))
        _add_vocabulary(writer, folder, config.vocab_size)
        for tensor in tensors:
            name, kind = names.get_name(tensor.name, (".weight",)), kind_of(tensor)
            if name is None:
                raise _refusal(f"{folder} has a tensor {tensor.name}, for which GGUF's Llama has no name")
            bytes_each = 4 if kind is gguf.GGMLQuantizationType.F32 else 2
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32),
                                   bytes_each * math.prod(tensor.shape), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in progress(tensors, desc="GGUF"):
            writer.write_tensor_data(gguf.quants.quantize(_values(tensor, config), kind_of(tensor)))
    finally:
        writer.close()
    return folder / GGUF_FILE


def kind_of(tensor: StoredTensor) -> gguf.GGMLQuantizationType:
    """Return GGUF's type of a tensor: its own for a matrix; llama.cpp wants the norms in float32."""
    return KINDS[tensor.dtype if len(tensor.shape) > 1 else torch.float32]


def _is_small(kind: gguf.GGMLQuantizationType) -> bool:
    return kind is not gguf.GGMLQuantizationType.F32


def _values(tensor: StoredTensor, config: Any) -> np.ndarray:
    """Return a tensor in float32; rows of queries and keys in llama.cpp's order.

    Rotary positions turn pairs of rows: (i, i + half) of a head in transformers, (2i, 2i + 1) in llama.cpp.
    """
    with open(tensor.file, "rb", buffering=0) as stream:
        values = torch.cat([block.float() for _, block in read_rows(tensor, stream)]).numpy()
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for ending, number in heads.items():
        if tensor.name.endswith(ending):
            halves = values.reshape(number, 2, len(values) // number // 2, -1)
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values


def _add_settings(writer: gguf.GGUFWriter, config: Any, kind: gguf.GGMLQuantizationType) -> None:
    """Add what the model computes with."""
    writer.add_file_type({"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16,
                          "BF16": gguf.LlamaFileType.MOSTLY_BF16}[kind.name])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Add the tokenizer; numbers without a token are marked as unused."""
    tokenizer = load_tokenizer(str(folder))
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for token, number in tokenizer.get_vocab().items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    for number, added in tokenizer.added_tokens_decoder.items():
        kinds[number] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    merges = rules["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(rules, str(folder)))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, number in ((writer.add_bos_token_id, tokenizer.bos_token_id),
                        (writer.add_eos_token_id, tokenizer.eos_token_id),
                        (writer.add_unk_token_id, tokenizer.unk_token_id),
                        (writer.add_pad_token_id, tokenizer.pad_token_id)):
        if number is not None:
            add(number)
    writer.add_add_bos_token(bool(beginning_of(tokenizer)))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
