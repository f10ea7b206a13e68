"""Writing the data set on disk: the examples of every file, and beside them the whole files."""
import argparse
import contextlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter

from pipeline.errors import PipelineError
from pipeline.preparation.cutting import Choice, CleanFile, usual_windows, windows_of
from pipeline.preparation.dropped import DroppedFiles
from pipeline.preparation.splits import SPLITS, Plan
from pipeline.preparation.statistics import Statistics

ROWS_PER_WRITE, CHARACTERS_PER_WRITE = 2000, 4 << 20  # examples, or that much text of whole files, at a time
COLUMNS_OF_ORIGIN = ("repository", "path", "license_file")
EXAMPLE = datasets.Features({"prompt": datasets.Value("string"), "completion": datasets.Value("string"),
                             "source_line": datasets.Value("int64"), "start": datasets.Value("int64")})
FILE = datasets.Features({"text": datasets.Value("string"), "source_line": datasets.Value("int64"),
                          **{name: datasets.Value("string") for name in COLUMNS_OF_ORIGIN}})


class SplitWriter:
    """Writes the rows of one split to an Arrow file, some at a time."""

    def __init__(self, path: Path, features: datasets.Features):
        self.path, self.features = path, features
        self.writer = ArrowWriter(path=str(path), features=features)
        self.pending: dict[str, list] = {name: [] for name in features}
        self.characters = 0

    def add(self, columns: dict[str, list], characters: int = 0) -> None:
        """Take up rows, given as columns; `characters`: of the text in them, where it can be long."""
        for name, values in columns.items():
            self.pending[name] += values
        self.characters += characters
        if len(self.pending["source_line"]) >= ROWS_PER_WRITE or self.characters >= CHARACTERS_PER_WRITE:
            self.flush()

    def flush(self) -> None:
        """Write what was taken up."""
        if self.pending["source_line"]:
            self.writer.write_batch(self.pending)
        self.pending, self.characters = {name: [] for name in self.features}, 0

    def finish(self) -> datasets.Dataset:
        """Write the rest and return the split as it lies on the disk."""
        self.flush()
        self.writer.finalize()
        return datasets.Dataset.from_file(str(self.path))


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


def save_splits(writers: dict[str, SplitWriter], folder: Path) -> None:
    """Save what was written of each split as a DatasetDict, without splits that are empty; nothing, where all
    are.

    A writer's file is removed.  It is mapped into memory only as long as it is copied, because its pages
    count as this process's.
    """
    datasets.disable_progress_bars()  # more bars, for what takes a second
    data = datasets.DatasetDict({split: rows for split, writer in writers.items()
                                 if len(rows := writer.finish())})
    if data:
        data.save_to_disk(str(folder))
    for writer in writers.values():
        writer.path.unlink()


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
