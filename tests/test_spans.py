"""pipeline/fim/spans.py: which part of a text is its middle."""
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_runs import TEXTS

from pipeline.fim.spans import MIDDLE_CHARACTERS, SHARES, draw_middle, line_begins

CODE = "package a\n\nfun f(x: Int): Int {\n    val a = x + 1\n    return a * 2\n}\n" * 20


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(0, 200), st.integers(0, 200), st.integers(0, 2**32))
def test_a_middle_lies_where_it_may(text: str, first: int, last: int, seed: int) -> None:
    """What was a label before becomes one again, or a middle goes on beyond the text, or holds nothing."""
    first, last = min(first, len(text)), min(last, len(text))
    found = draw_middle(text, first, last, np.random.default_rng(seed), [(0, 3), (2, 9), (5, 5)])
    if found is None:
        return
    kind, begin, end = found
    assert first <= begin < end <= last
    assert end - begin <= MIDDLE_CHARACTERS
    middle = text[begin:end]
    assert middle.strip()
    if kind == "lines":
        assert begin == 0 or text[begin - 1] == "\n"
        assert end == last or "\n" in (text[end - 1], text[end])
    elif kind == "rest":
        assert "\n" not in middle
        assert end == last or text[end] == "\n"
        assert text[:begin].rpartition("\n")[2].strip()
    else:
        assert (begin, end) in [(0, 3), (2, 9)]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(0, 60), st.integers(0, 60))
def test_the_beginnings_of_lines(text: str, first: int, last: int) -> None:
    """Whole lines begin within a line."""
    first, last = min(first, len(text)), min(last, len(text))
    expected = [i for i in range(first, last) if i == 0 or text[i - 1] == "\n"]
    assert [begin for begin in line_begins(text, first, last) if begin < last] == expected


@pytest.mark.parametrize("grammar", [True, False])
def test_the_shares_are_those_that_are_documented(grammar: bool) -> None:
    """One kind of middle is hardly ever taught."""
    units = [(i, i + 12) for i in range(0, len(CODE) - 12, 50)] if grammar else None
    kinds = Counter(draw_middle(CODE, 0, len(CODE), np.random.default_rng(seed), units)[0]
                    for seed in range(3000))
    shares = SHARES if grammar else {kind: share for kind, share in SHARES.items() if kind != "unit"}
    assert set(kinds) == set(shares)
    for kind, share in shares.items():
        assert kinds[kind] / 3000 == pytest.approx(share / sum(shares.values()), abs=0.04)


def test_middles_are_drawn_from_the_whole_text() -> None:
    """The model is asked for the middle of a file and was taught its beginning alone."""
    places = [draw_middle(CODE, 0, len(CODE), np.random.default_rng(seed))[1] for seed in range(300)]
    assert min(places) < len(CODE) / 10
    assert max(places) > 0.8 * len(CODE)
    lengths = [len(CODE[b:e].splitlines()) for _, b, e in
               (draw_middle(CODE, 0, len(CODE), np.random.default_rng(seed)) for seed in range(300))]
    assert {1, 2, 5, 9} <= set(lengths)


@pytest.mark.parametrize("text", ["", "\n", "   \n\n ", "x" * 5000, "\n" + "y" * 900 + "\n"])
def test_a_text_without_a_middle_or_of_one_long_line(text: str) -> None:
    """A file of one line, or none, ends in an endless search or a traceback."""
    found = draw_middle(text, 0, len(text), np.random.default_rng(0))
    assert found is None or 0 < found[2] - found[1] <= MIDDLE_CHARACTERS
