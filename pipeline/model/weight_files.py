"""A model folder's weights: which files they are, for every stage alike, and the tensors in them."""
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.run.errors import PipelineError

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_told: set[Path] = set()  # the folders of whose unused index the user was told


@dataclass
class StoredTensor:
    """Where a tensor lies in a safetensors file."""
    file: Path
    name: str
    dtype: Any  # torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    size: int  # in bytes


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a model's weights are, chosen as transformers chooses them; none: an empty list.

    That is what config.json names (`transformers_weights`), else the single file, else those of the index.
    A folder that was written twice holds the single file and the index of another model: a line says so.
    """
    chosen = _named_by_config(folder) or (SINGLE_FILE if (folder / SINGLE_FILE).is_file() else INDEX)
    if not (folder / chosen).is_file():
        if shards := sorted(folder.glob("model-*.safetensors")):
            raise PipelineError(f"model {folder}: holds {shards[0].name} and no {chosen}, which says what "
                                "belongs together; get that file too")
        return []
    if chosen.endswith(".index.json"):
        return indexed_files(folder / chosen)
    if chosen == SINGLE_FILE and (folder / INDEX).is_file() and folder not in _told:
        _tell_of_unused_index(folder)
    return [folder / chosen]


def _named_by_config(folder: Path) -> str | None:
    try:
        named = json.loads((folder / "config.json").read_bytes()).get("transformers_weights")
    except (OSError, ValueError, AttributeError):  # no configuration, or a damaged one: told where it is read
        return None
    if named is not None and (not isinstance(named, str) or Path(named).name != named):
        raise PipelineError(f"{folder / 'config.json'}: names weights outside its folder; do not use this "
                            "model")
    return named


def _tell_of_unused_index(folder: Path) -> None:
    try:
        stale = [file.name for file in indexed_files(folder / INDEX)] != [SINGLE_FILE]
    except PipelineError:
        stale = True
    if stale:
        _told.add(folder)
        print(f"note: {folder}: its weights are read from {SINGLE_FILE}, as transformers reads them; the "
              f"{INDEX} beside it, of another model, is left out", file=sys.stderr)


def indexed_files(index: Path) -> list[Path]:
    """Return the files that an index names, each once; PipelineError where it is damaged or leads out."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        unsafe = any(Path(name).name != name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PipelineError(f"{index}: is not an index of weights; download it again") from None
    if unsafe:
        raise PipelineError(f"{index}: names weights outside its folder; do not use this model")
    return [index.with_name(name) for name in sorted(names)]


def stored_dtype(name: str) -> Any:
    """Return the torch dtype of a safetensors dtype name, or None for one that is not handled here."""
    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
            "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
            "BOOL": torch.bool}.get(name)


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


def stored_tensors(folder: Path) -> list[list[StoredTensor]]:
    """Return the tensors of a model's weight files, file by file; files without any are left out."""
    return [tensors for file in weight_files(folder) if (tensors := list_tensors(file))]
