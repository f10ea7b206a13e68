"""Writing the examples of every file as a data set on disk."""
import argparse
import contextlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter

from pipeline.errors import PipelineError
from pipeline.preparation.cutting import CleanFile, windows_of
from pipeline.preparation.splits import SPLITS
from pipeline.preparation.statistics import Statistics

ROWS_PER_WRITE = 2000  # examples that are written at a time


def write_examples(files: Iterable[CleanFile], splits: list[str | None], args: argparse.Namespace,
                   folder: Path, counts: Counter, statistics: Statistics) -> Any:
    """Write the examples of every file that has a split; return the DatasetDict, which lies in `folder`."""
    features = datasets.Features({"prompt": datasets.Value("string"), "completion": datasets.Value("string"),
                                  "source_line": datasets.Value("int64")})
    with contextlib.ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            writer = ArrowWriter(path=str(folder / f"{split}.arrow"), features=features)
            writers[split] = stack.enter_context(writer)
        rows = {split: {name: [] for name in features} for split in SPLITS}
        for file, split in zip(files, splits, strict=True):
            if split is None:
                continue
            windows = windows_of(file, split, args.keep_large_values)
            every = file.train_windows if split == "train" else file.eval_windows
            counts["examples skipped, very large value"] += len(every) - len(windows)
            counts[f"files in {split}"] += bool(len(windows))
            counts[f"examples in {split}"] += len(windows)
            if len(windows):
                statistics.add(file.text, windows)
                places = windows[:, :3].tolist()
                prompts = [file.text[start:cut] for start, cut, _ in places]
                completions = [file.text[cut:end] for _, cut, end in places]
                pending = rows[split]
                pending["prompt"] += prompts
                pending["completion"] += completions
                pending["source_line"] += [file.source_line] * len(prompts)
                if len(pending["prompt"]) >= ROWS_PER_WRITE:
                    writers[split].write_batch(pending)
                    rows[split] = {name: [] for name in features}
        empty = [split for split in SPLITS if not counts[f"examples in {split}"]]
        if empty:
            raise PipelineError(f"{args.input_file}: the corpus is too small for three splits: "
                                f"{' and '.join(empty)} would hold no example "
                                f"({sum(s is not None for s in splits)} files can serve); collect more "
                                "files, raise --validation_fraction and --test_fraction, or try another "
                                "--seed")
        for split, writer in writers.items():
            if rows[split]["prompt"]:
                writer.write_batch(rows[split])
            writer.finalize()
    datasets.disable_progress_bars()  # three more bars, for what takes a second
    return datasets.DatasetDict({split: datasets.Dataset.from_file(str(folder / f"{split}.arrow"))
                                 for split in SPLITS})
