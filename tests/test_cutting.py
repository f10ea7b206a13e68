"""pipeline/preparation/cutting.py: where a file is cut, and into which windows."""
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_runs import TEXTS

from pipeline.preparation.cutting import (
    LINE,
    OTHER_PUNCTUATION,
    STATEMENT,
    WHITE_SPACE,
    WITHIN_WORD,
    cut_windows,
    find_cuts,
)


@pytest.fixture(scope="session")
def offsets_of(tokenizer_folder: Path) -> Callable[[str], np.ndarray]:
    """Return a function that gives the (tokens, 2) character offsets of a text's tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return lambda text: np.array(tokenizer.encode(text, add_special_tokens=False).offsets,
                                 dtype=np.int64).reshape(-1, 2)


def split_into_chunks(text: str, offsets: np.ndarray, chunk_tokens: int) -> list[str]:
    """Return `text` cut into consecutive chunks of about `chunk_tokens` tokens; joined they are `text`."""
    position, ranks = find_cuts(text, offsets)
    windows = cut_windows(ranks, chunk_tokens, stride_tokens=0)
    bounds = [0, *(cut for _, cut, _ in windows), *(end for _, _, end in windows[-1:]), len(position) - 1]
    places = sorted({int(position[i]) for i in bounds})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(text=TEXTS, chunk=st.integers(1, 40))
@settings(deadline=None, max_examples=150)
def test_chunks_joined_are_the_text(offsets_of: Callable[[str], np.ndarray], text: str, chunk: int) -> None:
    """Cutting loses or changes characters: prompt + completion reads `val a = 1val b`."""
    offsets = offsets_of(text)
    if not len(offsets):
        assert not text
        return
    chunks = split_into_chunks(text, offsets, chunk)
    assert "".join(chunks) == text
    assert all(chunks)


@given(text=TEXTS, chunk=st.integers(1, 40), stride=st.integers(0, 20))
@settings(deadline=None, max_examples=150)
def test_windows_of_a_text_hold_text(offsets_of: Callable[[str], np.ndarray], text: str, chunk: int,
                                     stride: int) -> None:
    """An example has an empty prompt or completion."""
    offsets = offsets_of(text)
    if not len(offsets):
        return
    position, ranks = find_cuts(text, offsets)
    windows = np.array(cut_windows(ranks, chunk, stride), dtype=np.int64).reshape(-1, 3)
    for start, cut, end in position[windows].tolist():
        assert 0 <= start < cut < end <= len(text)


@st.composite
def boundaries(draw: st.DrawFn) -> bytes:
    """Draw the ranks of boundaries; in some draws most places are within words, or no places at all."""
    count = draw(st.integers(1, 150))
    kinds = draw(st.lists(st.integers(0, LINE), min_size=1, max_size=8))
    inner = draw(st.lists(st.sampled_from(kinds), min_size=count - 1, max_size=count - 1))
    return bytes([LINE, *inner, LINE])


@given(ranks=boundaries(), chunk=st.integers(1, 60), stride=st.integers(1, 60))
@settings(deadline=None, max_examples=300)
def test_cut_windows_invariants(ranks: bytes, chunk: int, stride: int) -> None:
    """A chunk is too long, a completion is evaluated twice or leaves a hole, a cut splits a character."""
    count = len(ranks) - 1
    for windows in (cut_windows(ranks, chunk, 0), cut_windows(ranks, chunk, stride)):
        assert all(0 <= start < cut < end <= count for start, cut, end in windows)
        assert all(ranks[place] for window in windows for place in window)
        assert [w[0] for w in windows] == sorted({w[0] for w in windows})
        for window in windows:
            for low, high in itertools.pairwise(window):
                # Longer only where one character has more tokens than that.
                assert high - low <= chunk or not any(ranks[low + 1:high])
    windows = cut_windows(ranks, chunk, 0)
    for before, after in itertools.pairwise(windows):
        assert after[0] == before[1]
        assert after[1] == before[2]  # the next completion begins where this one ends
    if windows and all(ranks):
        assert windows[-1][2] == count  # no rest is left that no completion holds


def test_every_place_of_a_file_is_in_a_completion_of_train() -> None:
    """With a stride smaller than a chunk, the end of a file is never trained on."""
    for count in range(20, 700):
        assert cut_windows(bytes([LINE] * (count + 1)), 100, 35)[-1][2] == count


@pytest.mark.parametrize(("ranks_near_the_end", "expected"), [
    ({100: WITHIN_WORD}, 100),
    ({99: OTHER_PUNCTUATION}, 99),
    ({99: OTHER_PUNCTUATION, 95: WHITE_SPACE}, 95),
    ({99: WHITE_SPACE, 90: STATEMENT, 85: STATEMENT}, 90),
    ({99: STATEMENT, 98: WHITE_SPACE, 82: LINE}, 82),
    ({99: STATEMENT, 80: LINE}, 99),  # not near the end
    ({79: STATEMENT, 60: LINE, 40: LINE}, 60),  # nothing near the end: the second half
    ({40: LINE}, 100),  # nothing in the second half: between two characters
    ({100: 0, 99: 0, 98: 0}, 97),  # within a character
])
def test_the_order_of_places_to_cut(ranks_near_the_end: dict[int, int], expected: int) -> None:
    """A chunk ends within a statement although a line ends close by, or is far too short for its sake."""
    ranks = bytearray([WITHIN_WORD] * 301)
    for place, rank in ranks_near_the_end.items():
        ranks[place] = rank
    assert cut_windows(bytes(ranks), 100, 0)[0][:2] == (0, expected)


@pytest.mark.parametrize(("text", "ranks"), [
    ("a;b", [WITHIN_WORD, STATEMENT]),
    ("a.b", [WITHIN_WORD, OTHER_PUNCTUATION]),
    ("a b", [WHITE_SPACE, WITHIN_WORD]),
    ("a)\n b", [WITHIN_WORD, LINE, LINE, WITHIN_WORD]),
    ("a{ b", [WITHIN_WORD, STATEMENT, WITHIN_WORD]),
    ("a \nb", [WHITE_SPACE, WITHIN_WORD, LINE]),
    ("$_é", [WITHIN_WORD, WITHIN_WORD]),
])
def test_ranks_of_places(text: str, ranks: list[int]) -> None:
    """A place to cut is taken for another kind."""
    offsets = np.array([(i, i + 1) for i in range(len(text))])
    assert list(find_cuts(text, offsets)[1]) == [LINE, *ranks, LINE]


@pytest.mark.parametrize(("count", "stride", "expected"), [
    (1000, 35, [(s, s + 100, s + 200) for s in range(0, 801, 35)]),
    (400, 0, [(0, 100, 200), (100, 200, 300), (200, 300, 400)]),
    (50, 0, [(0, 25, 50)]),
    (19, 0, []),
    (203, 0, [(0, 100, 151), (100, 151, 203)]),  # no chunk of 103, and no completion of 3
    (105, 0, [(0, 52, 105)]),
])
def test_cut_windows_where_every_place_is_good(count: int, stride: int,
                                               expected: list[tuple[int, int, int]]) -> None:
    """Chunks are longer or shorter than --chunk_tokens, or windows do not slide by --stride_tokens."""
    windows = cut_windows(bytes([LINE] * (count + 1)), 100, stride)
    full = [window for window in windows if window[2] - window[1] >= 100]
    assert full == expected or windows == expected


def test_chunks_of_code_end_at_the_ends_of_lines(offsets_of: Callable[[str], np.ndarray]) -> None:
    """Chunks end in the middle of a line of code, or hold more tokens than --chunk_tokens."""
    text = "val s = f(a)\n" * 60
    chunks = split_into_chunks(text, offsets_of(text), 40)
    assert len(chunks) > 10
    assert all(chunk.startswith("val") and chunk.endswith("\n") for chunk in chunks)
    assert all(len(offsets_of(chunk)) <= 40 for chunk in chunks)
