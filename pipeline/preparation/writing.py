"""Writing the data set on disk: the examples of every file, and beside them the whole files."""
import argparse
import contextlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np

from pipeline.data.clean_file import SPLITS, CleanFile
from pipeline.data.split_files import SplitWriter, save_splits
from pipeline.preparation.cleaning import DroppedFiles
from pipeline.preparation.cutting import Choice, usual_windows, windows_of
from pipeline.preparation.splits import Plan
from pipeline.preparation.statistics import Statistics
from pipeline.run.errors import PipelineError

COLUMNS_OF_ORIGIN = ("repository", "path", "license_file")
EXAMPLE = datasets.Features({"prompt": datasets.Value("string"), "completion": datasets.Value("string"),
                             "source_line": datasets.Value("int64"), "start": datasets.Value("int64")})
FILE = datasets.Features({"text": datasets.Value("string"), "source_line": datasets.Value("int64"),
                          **{name: datasets.Value("string") for name in COLUMNS_OF_ORIGIN}})


def write_data_set(files: Iterable[CleanFile], plan: Plan, args: argparse.Namespace, choice: Choice,
                   scratch: Path, folder: Path, counts: Counter, statistics: Statistics,
                   dropped: DroppedFiles) -> None:
    """Write the examples of every file that has a split to `folder`, as a DatasetDict, and the texts to
    `files` in it; note the other files as dropped."""
    examples = {split: SplitWriter(scratch / f"examples.{split}.arrow", EXAMPLE) for split in SPLITS}
    texts = {split: SplitWriter(scratch / f"files.{split}.arrow", FILE) for split in SPLITS}
    with contextlib.ExitStack() as stack:
        for writer in (*examples.values(), *texts.values()):
            stack.enter_context(writer.writer)
        for number, (file, split) in enumerate(zip(files, plan.splits, strict=True)):
            if split is None:
                counts[f"dropped, {plan.reasons[number]}"] += 1
                dropped.add(file.source_line, file.origin, plan.reasons[number], plan.kept_lines[number])
                continue
            source = {name: [getattr(file.origin, name)] for name in COLUMNS_OF_ORIGIN}
            texts[split].add({"text": [file.text], "source_line": [file.source_line], **source},
                             len(file.text))
            windows = chosen_windows(file, split, choice, counts, dropped)
            statistics.add_file(file, split, len(windows))
            if len(windows):
                statistics.add(file.text, windows)
                places = windows[:, :3].tolist()
                examples[split].add({"prompt": [file.text[start:cut] for start, cut, _ in places],
                                     "completion": [file.text[cut:end] for _, cut, end in places],
                                     "source_line": [file.source_line] * len(places),
                                     "start": [start for start, _, _ in places]})
        check_not_empty(plan.splits, args, counts)
        save_splits(examples, folder)
        save_splits(texts, folder / "files")


def chosen_windows(file: CleanFile, split: str, choice: Choice, counts: Counter,
                   dropped: DroppedFiles) -> np.ndarray:
    """Return the windows of a file that become examples of its split; count them and what is left out."""
    every = usual_windows(file, split, True, True)
    small = usual_windows(file, split, choice.keep_large_values, True)
    telling = usual_windows(file, split, choice.keep_large_values, choice.keep_trivial)
    windows = windows_of(file, split, choice)
    counts["examples skipped, very large value"] += len(every) - len(small)
    counts["test examples skipped, only imports or brackets"] += len(small) - len(telling)
    if left_out := len(telling) - len(windows):
        counts["examples skipped, more than one file may give"] += left_out
        counts["files cut to what one may give"] += 1
        dropped.add(file.source_line, file.origin, f"cut: gives {len(windows)} examples of {len(telling)}",
                    examples_left_out=left_out)
    counts[f"files in {split}"] += bool(len(windows))
    counts[f"examples in {split}"] += len(windows)
    return windows


def check_not_empty(splits: list[str | None], args: argparse.Namespace, counts: Counter) -> None:
    """Raise PipelineError where a split would hold no example."""
    empty = [split for split in SPLITS if not counts[f"examples in {split}"]]
    if not empty and counts["files in test"] < 2:
        raise PipelineError(f"{args.input_file}: the corpus is too small for three splits: the test would "
                            f"hold one file ({sum(s is not None for s in splits)} files can serve), which "
                            "tells nothing of others; collect more files, raise --test_fraction, or try "
                            "another --seed")
    if empty:
        raise PipelineError(f"{args.input_file}: the corpus is too small for three splits: "
                            f"{' and '.join(empty)} would hold no example "
                            f"({sum(s is not None for s in splits)} files can serve); collect more "
                            "files, raise --validation_fraction and --test_fraction, or try another --seed")
