"""Reading a data set of prompts and completions, and drawing from it."""
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from pipeline.errors import PipelineError, first_line, looks_like_path
from pipeline.files import check_data_set_path, recover_folder
from pipeline.hub import hub_errors, hub_files
from pipeline.manifests import check_manifest


def load_examples(source: str, splits: Iterable[str], verify: bool = True) -> Any:
    """Return the `DatasetDict` of prompt/completion examples at `source`, a local folder or a hub data set.

    Raises PipelineError where it cannot be found or read, where one of `splits` or the columns `prompt` and
    `completion` are missing, and, for a folder, where a file differs from its manifest (`verify`).
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
            data = _read_hub(source, "default" if _hub_has_files(source) else None)
    _check_columns(source, data, splits, {"prompt", "completion"})
    return data


def load_files(source: str, splits: Iterable[str] = ()) -> Any:
    """Return the `DatasetDict` of whole files that lies beside the examples at `source`; None without one.

    Raises PipelineError where it cannot be read, or where one of `splits` or its columns are missing.  It is
    not compared with its manifest: `load_examples` has done that.
    """
    folder = Path(source) / "files"
    if Path(source).is_dir():
        if not (folder / "dataset_dict.json").is_file():
            return None
        source = str(folder)
        data = _read_folder(source)
    else:
        with hub_errors("data set", source):
            if not _hub_has_files(source):
                return None
            data = _read_hub(source, "files")
    _check_columns(source, data, splits, {"text", "source_line"})
    return data


def _read_folder(folder: str) -> Any:
    try:
        return datasets.load_from_disk(folder)
    except IndexError as error:  # what datasets makes of a split without rows
        raise PipelineError(f"{folder}: a split is empty; run preprocess_data.py on more files") from error
    except Exception as error:  # pyarrow and datasets raise many types for a damaged file
        raise PipelineError(f"{folder}: cannot be read ({first_line(error)}); run preprocess_data.py "
                            "again") from error


def _hub_has_files(name: str) -> bool:
    """Return whether a hub data set has the two configurations that preprocess_data.py publishes."""
    return any(re.fullmatch(r"files/\w+\.parquet", file) for file in hub_files(name, repo_type="dataset")[1])


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
