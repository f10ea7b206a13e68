"""Lengths of the examples, and the kinds of places where they were cut."""
from collections import Counter

import numpy as np


class Statistics:
    """Lengths of prompts and completions in tokens, and the kinds of places where examples were cut."""

    def __init__(self, chunk_tokens: int):
        self.longest = 2 * chunk_tokens
        self.lengths = {"prompt": np.zeros(self.longest + 1, dtype=np.int64),
                        "completion": np.zeros(self.longest + 1, dtype=np.int64)}
        self.boundaries: Counter = Counter()

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
