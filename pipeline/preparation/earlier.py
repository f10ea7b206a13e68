"""The splits of an earlier data set, which files and their near-duplicates keep."""
import argparse
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from pipeline.data.clean_file import SPLITS, Origin
from pipeline.data.datasets import load_files
from pipeline.preparation.splits import Corpus
from pipeline.preparation.workers import map_in_order, shingle_texts
from pipeline.run.errors import PipelineError

TEXTS_PER_TASK = 16


class Earlier:
    """The files of an earlier data set: on which side each path was, and what stood there."""

    def __init__(self, name: str | None):
        """`name`: --keep_splits; None: nothing is known of any file."""
        self.files: dict[str, Any] = {}
        self.sides: dict[tuple[str | None, str], str] = {}
        # of a path alone, where the repository goes by another name now; None where it was on two sides
        self.sides_of_paths: dict[str, str | None] = {}
        if name is None:
            return
        files = load_files(name, SPLITS)
        if files is None:
            raise PipelineError(f"--keep_splits {name}: holds no whole files, so that nothing says which "
                                "file was on which side; name a data set with a folder files/")
        for split in SPLITS:
            self.files[split] = files[split]
            if not {"repository", "path"} <= set(files[split].column_names):
                continue
            for repository, path in zip(files[split]["repository"], files[split]["path"], strict=True):
                if path is not None:
                    self.sides[repository, path] = split
                    same = self.sides_of_paths.setdefault(path, split) == split
                    self.sides_of_paths[path] = split if same else None

    def side_of(self, origin: Origin) -> str | None:
        """Return the split that a file was in, by its path, or None."""
        if origin.path is None:
            return None
        side = self.sides.get((origin.repository, origin.path))
        return side or self.sides_of_paths.get(origin.path)

    def add_to(self, corpus: Corpus, args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
        """Add the earlier files' shingles and splits to the corpus, after those of its own files, to find
        their near-duplicates: files that were edited, moved or renamed since."""
        for split, files in self.files.items():
            begins = range(0, len(files), TEXTS_PER_TASK)
            tasks = ((list(files[begin:begin + TEXTS_PER_TASK]["text"]),) for begin in begins)
            for found in map_in_order(pool, shingle_texts, tasks, window=3 * args.num_proc):
                for _, shingles in found:
                    corpus.shingles.add(shingles)
                    corpus.sides.append(split)
