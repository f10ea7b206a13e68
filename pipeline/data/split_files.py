"""The splits of a data set on disk: rows are written some at a time."""
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

ROWS_PER_WRITE, CHARACTERS_PER_WRITE = 2000, 4 << 20  # examples, or that much text of whole files, at a time


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
