"""The merge: W + scale * B @ A, tensor by tensor, written as it is computed."""
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from pipeline.merging.adapter import LoraPair, TokenRows
from pipeline.merging.adapter_tokenizer import write_tokenizer
from pipeline.merging.weights import read_rows, safetensors_dtype
from pipeline.model.mergeable import linear_layers, stored_embeddings, stored_weight
from pipeline.model.tokenizers import model_errors
from pipeline.model.weight_files import INDEX, SINGLE_FILE, StoredTensor
from pipeline.run.errors import PipelineError
from pipeline.run.progress import progress

COPIED_FROM_BASE = ("generation_config.json",)
Targets = dict[str, LoraPair | TokenRows]  # by the name of the stored tensor


def locate_targets(pairs: dict[str, LoraPair], tensors: list[StoredTensor], folder: Path, nf4: bool,
                   rows: TokenRows | None = None) -> Targets:
    """Return {stored tensor: its adapter}, each adapter once, with `transposed` set and all shapes checked;
    trained `rows` of the embedding once or, where the head shares it and both are stored, twice.

    With `nf4`, the layers that training quantized without giving them an adapter get one of rank 0.

    The model is built without memory (on torch's meta device) to see which modules exist and which are
    GPT-2's Conv1D.
    """
    with model_errors(str(folder)), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False),
                                                 trust_remote_code=False)
    head = model.get_output_embeddings()
    if nf4:
        shapes = {name: layer.weight.T.shape if isinstance(layer, Conv1D) else layer.weight.shape
                  for name, layer in linear_layers(model).items()}
        pairs = {name: LoraPair(torch.zeros(0, shape[1]), torch.zeros(shape[0], 0), 0.0, name)
                 for name, shape in shapes.items()} | pairs
    stored = {tensor.name: tensor for tensor in tensors}
    targets: Targets = locate_rows(rows, model, stored, folder) if rows else {}
    for module, pair in pairs.items():
        weight = stored_weight(module, model, stored, folder)
        if weight in targets:
            raise PipelineError(f"two of the adapter's modules have the weight {weight} of {folder}; nothing "
                                "was written")
        layer = model.get_submodule(module)
        pair.transposed, pair.quantized = isinstance(layer, Conv1D), layer is not head
        shape = (pair.b.shape[0], pair.a.shape[1])
        if stored[weight].shape != (shape[::-1] if pair.transposed else shape):
            raise PipelineError(f"the adapter of {module} is for a weight of shape {shape}, but {folder} has "
                                f"{stored[weight].shape}; is this the right base model?")
        targets[weight] = pair
    return targets


def locate_rows(rows: TokenRows, model: Any, stored: dict[str, StoredTensor], folder: Path) -> Targets:
    """Return {stored tensor: the rows that are replaced in it}; PipelineError where they do not fit."""
    module, names = stored_embeddings(model, stored, folder)
    if rows.module != module:
        raise PipelineError(f"the adapter's trained tokens are those of {rows.module}; those of the input "
                            f"embedding, {module}, alone can be merged; nothing was written")
    for name in names:
        height, width = stored[name].shape
        if rows.rows.shape[1] != width or max(rows.tokens) >= height:
            raise PipelineError(f"the adapter's trained tokens (up to {max(rows.tokens)}, of size "
                                f"{rows.rows.shape[1]}) do not fit the {name} of {folder}, {height} of size "
                                f"{width}; is this the right base model?")
    return dict.fromkeys(names, rows)


def merged_rows(tensor: StoredTensor, pair: LoraPair | TokenRows | None, dtype: Any, nf4: bool,
                stream: IO) -> Iterator[Any]:
    """Yield the output tensor's rows, block by block, in `dtype` (integers keep their own)."""
    if pair is not None and nf4 and pair.quantized:
        yield merge_rows(dequantized_nf4(tensor, stream, pair.transposed), pair, 0).to(dtype)
        return
    for first, block in read_rows(tensor, stream):
        if isinstance(pair, TokenRows):
            block = block.to(dtype)
            for token, row in zip(pair.tokens, pair.rows, strict=True):
                if first <= token < first + len(block):
                    block[token - first] = row.to(dtype)
        elif pair is not None:
            block = merge_rows(block.float(), pair, first)
        yield block.to(dtype) if block.is_floating_point() else block


def merge_rows(rows: Any, pair: LoraPair, first: int) -> Any:
    """Return float32 `rows` of a weight, from row `first` on, plus their part of scale * B @ A."""
    last = first + len(rows)
    left, right = (pair.a.T[first:last], pair.b.T) if pair.transposed else (pair.b[first:last], pair.a)
    return rows.addmm_(left, right, alpha=pair.scale)


def dequantized_nf4(tensor: StoredTensor, stream: IO, transposed: bool) -> Any:
    """Return a stored weight in float32 as training with NF4 saw it, by bitsandbytes' own quantization."""
    weight = torch.cat([block for _, block in read_rows(tensor, stream)])
    packed, state = quantize_4bit(weight.T.contiguous() if transposed else weight, blocksize=64,
                                  quant_type="nf4", compress_statistics=True)
    restored = dequantize_4bit(packed, state).float()
    return restored.T.contiguous() if transposed else restored


def write_shard(file: Path, tensors: list[StoredTensor], targets: Targets, dtype: Any, nf4: bool,
                advance: Callable[[int], Any]) -> tuple[dict[str, int], dict[str, str]]:
    """Write one safetensors file as it is computed.

    Returns {tensor: size in bytes}, and {tensor: SHA-256} of those that were merged.  The format: 8 bytes
    with the header's length, the header as JSON, the tensors' bytes in the order of the header.
    """
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


def main_dtype(tensors: list[StoredTensor]) -> Any:
    """Return the dtype of most bytes of a model's matrices: one float32 buffer does not make a bf16 model
    float32."""
    floating = [t for t in tensors if t.dtype.is_floating_point]
    matrices = [t for t in floating if len(t.shape) > 1] or floating
    size: dict[Any, int] = {}
    for tensor in matrices:
        size[tensor.dtype] = size.get(tensor.dtype, 0) + tensor.size
    return max(size, key=lambda kind: (size[kind], kind.itemsize))


def write_model(base: Path, adapter: Path, folder: Path, targets: Targets,
                shards: list[list[StoredTensor]], dtype_name: str, nf4: bool) -> dict[str, str]:
    """Fill `folder` with the merged weights, the index, the configuration and the adapter's tokenizer.

    Returns {tensor: SHA-256 of its bytes} of the tensors that were merged.
    """
    dtype = None if dtype_name == "base" else getattr(torch, dtype_name)
    config = json.loads((base / "config.json").read_bytes())
    for key in ("auto_map", "quantization_config", "_name_or_path", "torch_dtype", "transformers_weights"):
        config.pop(key, None)  # remote code, and what is no longer true
    config["dtype"] = str(dtype or main_dtype([t for shard in shards for t in shard])).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED_FROM_BASE:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    write_tokenizer(adapter, base, folder)  # which may refuse, before the work
    weight_map: dict[str, str] = {}
    merged: dict[str, str] = {}
    total_size = 0
    with progress(total=sum(t.size for shard in shards for t in shard), unit="B", scaled=True,
                  desc="merging") as bar:
        for tensors in shards:
            name = tensors[0].file.name
            sizes, hashes = write_shard(folder / name, tensors, targets, dtype, nf4, bar.update)
            merged |= hashes
            weight_map.update(dict.fromkeys(sizes, name))
            total_size += sum(sizes.values())
    if set(weight_map.values()) != {SINGLE_FILE}:  # one shard too is found by its index alone
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return merged
