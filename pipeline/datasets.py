"""Reading a data set of prompts and completions, and drawing from it."""
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from pipeline.errors import PipelineError, first_line, looks_like_path
from pipeline.files import recover_folder
from pipeline.hub import hub_errors, hub_files
from pipeline.manifests import check_manifest


def load_examples(source: str, splits: Iterable[str], verify: bool = True) -> Any:
    """Return the `DatasetDict` of prompt/completion examples at `source`, a local folder or a hub data set.

    Raises PipelineError where it cannot be found or read, where one of `splits` or the columns `prompt` and
    `completion` are missing, and, for a folder, where a file differs from its manifest (`verify`).
    """
    folder = Path(source)
    if folder.exists() or looks_like_path(source):
        recover_folder(folder)
        if not (folder / "dataset_dict.json").is_file():
            raise PipelineError(f"{source}: no data set folder; run preprocess_data.py or name another "
                                "--dataset")
        if verify:
            check_manifest(folder)
        try:
            data = datasets.load_from_disk(source)
        except IndexError as error:  # what datasets makes of a split without rows
            raise PipelineError(f"{source}: a split is empty; run preprocess_data.py on more files"
                                ) from error
        except Exception as error:  # pyarrow and datasets raise many types for a damaged file
            raise PipelineError(f"{source}: cannot be read ({first_line(error)}); run preprocess_data.py "
                                "again") from error
    else:
        with hub_errors("data set", source):
            hub_files(source, repo_type="dataset")
            try:
                data = datasets.load_dataset(source)
            except (ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
                raise PipelineError(f"data set {source}: cannot be loaded: {first_line(error)}") from error
    for split in splits:
        if split not in data:
            raise PipelineError(f"{source}: no split {split!r}; it has {', '.join(data)}")
        missing = {"prompt", "completion"} - set(data[split].column_names)
        if missing:
            raise PipelineError(f"{source}: split {split!r} has no column {', '.join(sorted(missing))}; "
                                f"it has {', '.join(data[split].column_names)}. preprocess_data.py writes "
                                "both")
    return data


def draw(number_of_rows: int, sample: int, seed: int) -> list[int]:
    """Return `sample` row numbers drawn at random with the seed, in order; 0, or more than there are: all."""
    if sample == 0 or sample >= number_of_rows:
        return list(range(number_of_rows))
    return sorted(random.Random(seed).sample(range(number_of_rows), sample))
