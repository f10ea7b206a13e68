"""Lengths of the examples, where they were cut, and which files give most of them."""
import heapq
from collections import Counter

import numpy as np

from pipeline.data.clean_file import CleanFile, Origin

LARGEST_FILES = 10  # of train, that are named


class Statistics:
    """Lengths of prompts and completions in tokens, the kinds of places where examples were cut, and what
    the files give to their splits."""

    def __init__(self, chunk_tokens: int):
        self.longest = 2 * chunk_tokens
        self.lengths = {"prompt": np.zeros(self.longest + 1, dtype=np.int64),
                        "completion": np.zeros(self.longest + 1, dtype=np.int64)}
        self.boundaries: Counter = Counter()
        self.tokens: Counter = Counter()  # of the files of each split
        # (examples, -source line, origin) of the files that give most of train
        self.largest: list[tuple[int, int, Origin]] = []

    def add_file(self, file: CleanFile, split: str, examples: int) -> None:
        """Count a file, and the examples that it gives."""
        self.tokens[split] += len(file.token_ids)
        if split == "train":
            entry = (examples, -file.source_line, file.origin)
            if len(self.largest) < LARGEST_FILES:
                heapq.heappush(self.largest, entry)
            else:
                heapq.heappushpop(self.largest, entry)

    def add(self, text: str, windows: np.ndarray) -> None:
        """Count the examples of one file."""
        for name, lengths in (("prompt", windows[:, 4] - windows[:, 3]),
                              ("completion", windows[:, 5] - windows[:, 4])):
            self.lengths[name] += np.bincount(np.minimum(lengths, self.longest), minlength=self.longest + 1)
        self.boundaries.update(boundary_kind(text, cut) for cut in windows[:, 1].tolist())

    def quantiles(self, name: str) -> dict[str, int]:
        """Return minimum, quartiles and maximum of the lengths, in tokens."""
        cumulated = np.cumsum(self.lengths[name])
        return {label: int(np.searchsorted(cumulated, max(1, share * cumulated[-1])))
                for label, share in (("min", 0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("max", 1))}


def boundary_kind(text: str, cut: int) -> str:
    """Return what kind of place a cut is."""
    before, after = text[cut - 1], text[cut:cut + 1]
    if before == "\n":
        return "at the start of a line"
    if after == "\n":
        return "at the end of a line"
    if after.isspace() and before not in "};{,)":  # in the order of the ranks
        return "before white space within a line"
    return "within a word" if before.isalnum() or before in "_$" else f"behind {before}"
