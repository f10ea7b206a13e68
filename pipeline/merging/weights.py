"""A base model's files: their tensors, in blocks of rows."""
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.errors import PipelineError

BLOCK_ELEMENTS = 16 << 20  # of a tensor in float32: 64 MB


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
    """Return the torch dtype of a safetensors dtype name, or None for one that is not handled here."""
    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
            "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
            "BOOL": torch.bool}.get(name)


def safetensors_dtype(dtype: Any) -> str:
    """Return the safetensors name of a torch dtype."""
    return next(name for name in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
                if stored_dtype(name) == dtype)


def list_tensors(file: Path) -> list[StoredTensor]:
    """Return the tensors of a safetensors file in the order of their bytes.

    The library checks the header; the bytes are then read by offset, because the pages of its memory map
    would count as this process's memory.
    """
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
            raise PipelineError(f"{file}: tensor {name} is of type {entry['dtype']}, which cannot be merged "
                                "here")
        tensors.append(StoredTensor(file, name, stored_dtype(entry["dtype"]), tuple(entry["shape"]),
                                    8 + length + begin, end - begin))
    return sorted(tensors, key=lambda t: t.offset)


def read_rows(tensor: StoredTensor, stream: IO) -> Iterator[tuple[int, Any]]:
    """Yield (first row, rows) of a stored tensor by at most BLOCK_ELEMENTS elements; a scalar is one row."""
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
