"""A base model's tensors, in blocks of rows."""
from collections.abc import Iterator
from typing import IO, Any

import torch

from pipeline.model.weight_files import StoredTensor, stored_dtype
from pipeline.run.errors import PipelineError

BLOCK_ELEMENTS = 16 << 20  # of a tensor in float32: 64 MB


def safetensors_dtype(dtype: Any) -> str:
    """Return the safetensors name of a torch dtype."""
    return next(name for name in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
                if stored_dtype(name) == dtype)


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
