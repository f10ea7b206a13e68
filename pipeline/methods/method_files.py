"""Writing the methods of a code base: those of each split, near-copies of one method once."""
import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from pipeline.data.clean_file import SPLITS, CleanFile
from pipeline.data.large_values import LARGE_VALUE
from pipeline.data.near_duplicates import DUPLICATE, ShingleSets, near_duplicate_groups
from pipeline.data.split_files import ROWS_PER_WRITE, SplitWriter, save_splits
from pipeline.data.syntax import extension_of, find_grammar, language_of, missing_grammar
from pipeline.methods.finding import NO_GRAMMAR, QUERIES, FoundMethods
from pipeline.run.outputs import atomic_file

METHOD = datasets.Features({"signature": datasets.Value("string"), "docstring": datasets.Value("string"),
                            "body": datasets.Value("string"), "source_line": datasets.Value("int64"),
                            "start": datasets.Value("int64"), "path": datasets.Value("string")})
FOLDER = "methods"  # in that of the data set
JSONL_COLUMNS = ("signature", "docstring", "body", "source_line", "start")
MOST_NOTES = 5


def choose_methods(found: Iterator[FoundMethods], splits: list[str | None],
                   counts: Counter) -> tuple[np.ndarray, np.ndarray]:
    """Return which methods are kept, those of all files one after the other, and how many each file has.

    Of near-duplicates (of signature and body) the first in each split is kept, and none of a file that is in
    no split.  Counts what is dropped, how the files were parsed, and the test methods that have a
    near-duplicate in train.  Memory: 4 bytes per token of the methods, and 30 more while they are grouped.
    """
    numbers = np.zeros(len(splits), dtype=np.int64)
    sets = ShingleSets()
    for i, (methods, split) in enumerate(zip(found, splits, strict=True)):
        if split is None:
            continue
        counts[methods.fate] += 1
        numbers[i] = len(methods.places)
        for shingles in methods.shingles:
            sets.add(shingles)
    clusters = near_duplicate_groups(sets, DUPLICATE)
    codes = np.array([SPLITS.index(split) if split else -1 for split in splits], dtype=np.int64)
    split_of = np.repeat(codes, numbers)
    _, first = np.unique(clusters * len(SPLITS) + split_of, return_index=True)
    kept = np.zeros(len(clusters), dtype=bool)
    kept[first] = True
    counts["methods dropped, near-copy in their split"] += int((~kept).sum())
    in_train = np.isin(clusters, clusters[split_of == SPLITS.index("train")])
    in_test = kept & (split_of == SPLITS.index("test"))
    counts["methods in test with a near-copy in train"] += int((in_test & in_train).sum())
    return kept, numbers


def write_methods(read: Callable[[str], Iterator[Any]], splits: list[str | None], args: argparse.Namespace,
                  scratch: Path, folder: Path, counts: Counter) -> None:
    """Write the methods of every file that has a split to `folder`, as a DatasetDict and as JSON lines.

    `read(name)` reads the `spool` of the files or that of their `methods`.  A split without methods is left
    out, and the folder where all are.
    """
    kept, numbers = choose_methods(read("methods"), splits, counts)
    ends = np.cumsum(numbers)
    without: Counter = Counter()  # files without a grammar, by extension
    writers = {split: SplitWriter(scratch / f"methods.{split}.arrow", METHOD) for split in SPLITS}
    with contextlib.ExitStack() as stack:
        for writer in writers.values():
            stack.enter_context(writer.writer)
        for file, methods, split, number, end in zip(read("spool"), read("methods"), splits, numbers.tolist(),
                                                     ends.tolist(), strict=True):
            if split is None:
                continue
            without[extension_of(file.origin.path)] += methods.fate == NO_GRAMMAR
            rows = rows_of(file, methods.places[kept[end - number:end]], args, counts)
            counts[f"methods in {split}"] += len(rows)
            counts[f"methods in {split} with documentation"] += sum(bool(row["docstring"]) for row in rows)
            writers[split].add({name: [row[name] for row in rows] for name in METHOD}, len(file.text))
        save_splits(writers, folder / FOLDER)
    if (folder / FOLDER).is_dir():
        for split, rows in datasets.load_from_disk(str(folder / FOLDER)).items():
            write_jsonl(folder / FOLDER / f"{split}.jsonl", rows)
    tell_left_out(without)


def rows_of(file: CleanFile, places: np.ndarray, args: argparse.Namespace,
            counts: Counter) -> list[dict[str, Any]]:
    """Return the rows of METHOD of a file's methods; those with a very large value are left out and
    counted."""
    rows = []
    for first, start, opened, end in places.tolist():
        if file.has_large_value and not args.keep_large_values and LARGE_VALUE.search(file.text[first:end]):
            counts["methods skipped, very large value"] += 1
            continue
        rows.append({"signature": file.text[start:opened], "docstring": file.text[first:start].rstrip(),
                     "body": file.text[opened:end], "source_line": file.source_line, "start": start,
                     "path": file.origin.path})
    return rows


def write_jsonl(path: Path, methods: Any) -> None:
    """Write the methods of a split in the fields of CodeXGLUE's method generation."""
    with atomic_file(path) as out:
        for batch in methods.iter(batch_size=ROWS_PER_WRITE):  # a row at a time takes eight times as long
            for signature, docstring, body, line, start in zip(*(batch[name] for name in JSONL_COLUMNS),
                                                               strict=True):
                row = {"signature": signature, "docstring": docstring, "body": body, "id": f"{line}:{start}"}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def tell_left_out(files: Counter) -> None:
    """Say of which files the methods are left out, given by extension, and how to have them."""
    for extension, number in files.most_common(MOST_NOTES):
        if not number:
            continue
        left_out = f"the methods of {number} files are left out"
        if language_of(extension) not in QUERIES:  # a grammar would not help
            print(f"note: {left_out}, of {extension or 'no extension'}: what a method is has been written "
                  f"down for {' and '.join(map(str.capitalize, QUERIES))} alone", file=sys.stderr)
        elif find_grammar(extension) is None:
            print(f"note: {missing_grammar(extension, left_out)}", file=sys.stderr)
