"""pipeline/preparation/statistics.py: lengths of the examples and kinds of places where they were cut."""
from collections import Counter

import numpy as np
import pytest

from pipeline.preparation.statistics import Statistics, boundary_kind


@pytest.mark.parametrize(("text", "cut", "kind"), [
    ("a b", 1, "before white space within a line"),
    ("a\nb", 1, "at the end of a line"),
    ("a\nb", 2, "at the start of a line"),
    ("a(b", 2, "behind ("),
    ("a{ b", 2, "behind {"),
    ("ab", 1, "within a word"),
    ("ab", 2, "within a word"),
])
def test_boundary_kinds(text: str, cut: int, kind: str) -> None:
    """The report names the wrong kind of place."""
    assert boundary_kind(text, cut) == kind


def test_length_quantiles() -> None:
    """The report's lengths are not those of the examples."""
    statistics = Statistics(chunk_tokens=10)
    statistics.add("x" * 100, np.array([[0, 50, 100, 0, n, n + 5] for n in range(1, 10)]))
    assert statistics.quantiles("prompt") == {"min": 1, "25 %": 3, "median": 5, "75 %": 7, "max": 9}
    assert set(statistics.quantiles("completion").values()) == {5}
    assert statistics.boundaries == Counter({"within a word": 9})
