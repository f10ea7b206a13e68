"""Reading a data set of prompts and completions, and drawing from it."""
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute

from pipeline.hub.client import hub_errors, hub_files
from pipeline.run.errors import PipelineError, first_line, looks_like_path
from pipeline.run.manifests import check_manifest
from pipeline.run.outputs import check_data_set_path, recover_folder

TEXT = ("string", "large_string")  # types of a column


def load_examples(source: str, splits: Iterable[str], verify: bool = True,
                  optional: Iterable[str] = ()) -> Any:
    """Return the `DatasetDict` of prompt/completion examples at `source`, a local folder or a hub data set.

    Raises PipelineError where it cannot be found or read, where one of `splits` is missing or is not as
    `checked_split` wants it, and, for a folder, where a file differs from its manifest (`verify`).  Splits
    that are `optional` may be missing.
    """
    folder = Path(source)
    if folder.exists() or looks_like_path(source):
        check_data_set_path(folder)
        recover_folder(folder)
        if not (folder / "dataset_dict.json").is_file():
            raise PipelineError(f"{source}: no data set folder; run preprocess_data.py or name another "
                                "--dataset")
        if verify:
            check_manifest(folder)
        data = _read_folder(str(folder))
    else:
        with hub_errors("data set", source):
            # by name: offline, the library does not know which of two in its cache is meant
            data = _read_hub(source, "default" if _hub_has(source, "files") else None)
    for split in dict.fromkeys((*splits, *(split for split in optional if split in data))):
        if split not in data:
            raise PipelineError(f"{source}: no split {split!r}; it has {', '.join(data)}")
        data[split] = checked_split(source, split, data[split])
    return data


def checked_split(source: str, split: str, rows: Any) -> Any:
    """Return a split that has text in `prompt` and `completion`, and numbers in `source_line` and `start` or
    no such columns, as Python's own types.

    Raises PipelineError where prompt or completion are missing or hold something else.  Where it is the other
    two that hold something else, as in a data set from elsewhere, they are left out with a note.
    """
    # it may have been saved with numpy's or torch's types, or with some columns hidden
    if rows.format["type"] is not None or set(rows.format["columns"]) != set(rows.column_names):
        rows = rows.with_format(None)
    missing = {"prompt", "completion"} - set(rows.column_names)
    if missing:
        raise PipelineError(f"{source}: split {split!r} has no column {', '.join(sorted(missing))}; it has "
                            f"{', '.join(rows.column_names)}. preprocess_data.py writes both")
    for name in ("prompt", "completion"):
        if getattr(rows.features[name], "dtype", None) not in TEXT:
            raise PipelineError(f"{source}: split {split!r}: {name} holds {_kind(rows.features[name])}, not "
                                "text; write each as one string (of chat messages, what the model's chat "
                                "template makes of them)")
        column = rows.data.column(name)
        if column.null_count:
            row = pyarrow.compute.index(pyarrow.compute.is_null(column), True).as_py()
            raise PipelineError(f"{source}: split {split!r}: {name} is null in {column.null_count} of "
                                f"{len(column)} rows, first in row {row}; fill them in or leave these rows "
                                "out")
    if len(rows) and not pyarrow.compute.max(pyarrow.compute.binary_length(rows.data.column("completion"))
                                             ).as_py():
        raise PipelineError(f"{source}: split {split!r}: every completion is empty: there is nothing to "
                            "learn or to compare; name a data set that has some")
    return _without_other_columns(source, split, rows)


def _without_other_columns(source: str, split: str, rows: Any) -> Any:
    """Return the split without `source_line` and `start` where they are not the numbers that stage 2
    writes."""
    for name in ("source_line", "start"):
        if name not in rows.column_names:
            continue
        kind, nulls = _kind(rows.features[name]), rows.data.column(name).null_count
        if nulls or not kind.startswith(("int", "uint")):
            print(f"note: {source}: split {split!r}: {name} holds {'nulls' if nulls else kind}, not the "
                  "numbers that preprocess_data.py writes, and is left out"
                  + (": each example counts as a file of its own" if name == "source_line" else ""),
                  file=sys.stderr)
            rows = rows.remove_columns([name])
    return rows


def _kind(feature: Any) -> str:
    """Return the type of a column in a word."""
    return getattr(feature, "dtype", None) or type(feature).__name__


def load_files(source: str, splits: Iterable[str] = ()) -> Any:
    """Return the `DatasetDict` of whole files that lies beside the examples at `source`; None without one.

    Raises PipelineError where it cannot be read, or where one of `splits` or its columns are missing.
    """
    return _load_beside(source, "files", splits, {"text", "source_line"})


def load_methods(source: str, split: str) -> Any:
    """Return the methods of a split that lie beside the examples at `source`; None without any.

    Raises PipelineError where they cannot be read or where a column is missing.
    """
    columns = {"signature", "docstring", "body", "source_line", "start"}
    data = _load_beside(source, "methods", (split,), columns, optional=True)
    return None if data is None else data.get(split)


def _load_beside(source: str, name: str, splits: Iterable[str], columns: set[str],
                 optional: bool = False) -> Any:
    """Return the `DatasetDict` called `name` beside the examples at `source`, checked for the `columns` of
    `splits`, where these are not `optional` and missing; None where there is none.

    It is not compared with its manifest: `load_examples` has done that.
    """
    folder = Path(source) / name
    if Path(source).is_dir():
        if not (folder / "dataset_dict.json").is_file():
            return None
        source = str(folder)
        data = _read_folder(source)
    else:
        with hub_errors("data set", source):
            if not _hub_has(source, name):
                return None
            data = _read_hub(source, name)
    _check_columns(source, data, [split for split in splits if not optional or split in data], columns)
    return data


def _read_folder(folder: str) -> Any:
    try:
        return datasets.load_from_disk(folder)
    except IndexError as error:  # what datasets makes of a split without rows
        raise PipelineError(f"{folder}: a split is empty; run preprocess_data.py on more files") from error
    except Exception as error:  # pyarrow and datasets raise many types for a damaged file
        raise PipelineError(f"{folder}: cannot be read ({first_line(error)}); run preprocess_data.py "
                            "again") from error


def _hub_has(name: str, configuration: str) -> bool:
    """Return whether a hub data set has a configuration that preprocess_data.py publishes, files or
    methods."""
    return any(re.fullmatch(rf"{configuration}/\w+\.parquet", file)
               for file in hub_files(name, repo_type="dataset")[1])


def _read_hub(name: str, configuration: str | None = None) -> Any:
    try:
        return datasets.load_dataset(name, configuration)
    except (ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        raise PipelineError(f"data set {name}: cannot be loaded: {first_line(error)}") from error


def _check_columns(source: str, data: Any, splits: Iterable[str], columns: set[str]) -> None:
    for split in splits:
        if split not in data:
            raise PipelineError(f"{source}: no split {split!r}; it has {', '.join(data)}")
        missing = columns - set(data[split].column_names)
        if missing:
            raise PipelineError(f"{source}: split {split!r} has no column {', '.join(sorted(missing))}; "
                                f"it has {', '.join(data[split].column_names)}. preprocess_data.py writes "
                                "both")


def draw(number_of_rows: int, sample: int, seed: int) -> list[int]:
    """Return `sample` row numbers drawn at random with the seed, in order; 0, or more than there are: all."""
    if sample == 0 or sample >= number_of_rows:
        return list(range(number_of_rows))
    return sorted(random.Random(seed).sample(range(number_of_rows), sample))
