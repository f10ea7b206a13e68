"""pipeline/retrieval/index.py: which pieces are found, and which are never shown."""
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.retrieval.index import QUERY_LINES, Index, Place, query_of
from pipeline.retrieval.snippets import Vocabulary, pieces_of

NAMES = ("alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta")


def code(seed: int, lines: int = 30) -> str:
    """Return a file of some functions with names of its own."""
    draw = random.Random(seed)
    return "".join(f"fun {draw.choice(NAMES)}{draw.randrange(10**6)}({draw.choice(NAMES)}: Int) = "
                   f"{draw.choice(NAMES)}{seed}() + {draw.randrange(10**6)}\n" for _ in range(lines))


FILES = [code(seed) for seed in range(12)]


def test_the_piece_that_shares_the_rare_words_is_found() -> None:
    """What is shown before a file has nothing to do with it."""
    wanted = "fun openHarbourGate(tide: TideLevel) = gate.raise(tide)\n"
    files = [*FILES, code(50, 15) + wanted + code(51, 15)]
    [first, *_] = Index(files).best("// the harbour\nval x = open_harbour_gate(TIDE)\n", 3, ())
    assert first.file == len(files) - 1
    assert "openHarbourGate" in files[-1][first.begin:first.end]


def okapi(words: list[list[str]], query: set[str]) -> np.ndarray:
    """Return the scores of BM25 as Lucene computes it, by its formula."""
    number, average = len(words), sum(map(len, words)) / len(words)
    scores = np.zeros(number)
    for word in query:
        frequency = sum(word in piece for piece in words)
        idf = math.log(1 + (number - frequency + 0.5) / (frequency + 0.5))
        for i, piece in enumerate(words):
            count = piece.count(word)
            scores[i] += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(piece) / average))
    return scores


def test_scores_are_those_of_bm25() -> None:
    """The library changes what it computes, or the words reach it under wrong numbers."""
    index, vocabulary = Index(FILES), Vocabulary()
    words = [[str(number) for number in piece.words] for text in FILES
             for piece in pieces_of(text, vocabulary.read(text))]
    query = query_of(FILES[3])
    known = index.vocabulary.known(query, index.size)
    expected = okapi(words, {str(number) for number in known})
    assert index.scorer.get_scores_from_ids(known) == pytest.approx(expected, rel=1e-4)


def test_the_files_that_are_left_out_are_never_found() -> None:
    """A model is shown the file that it is asked for."""
    index = Index(FILES)
    for file, text in enumerate(FILES):
        assert index.best(query_of(text), 1, ())[0].file == file
        found = index.best(query_of(text), 50, index.kin(file))
        assert found
        assert file not in {place.file for place in found}


def test_near_copies_are_kin_inside_and_outside() -> None:
    """A renamed copy of the file gives the answer away."""
    files = [*FILES, FILES[0].replace("alpha", "renamed", 3), FILES[1][:len(FILES[1]) * 3 // 4]]
    index = Index(files)
    assert index.kin(0) == index.kin(12) == [0, 12]
    assert index.kin(13) == [1, 13]  # contained
    assert index.kin(2) == [2]
    assert index.kin_of_text(FILES[0].replace("beta", "other", 2)) == [0, 12]
    assert index.kin_of_text(code(99)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 11), st.integers(1, 40))
def test_pieces_neither_overlap_nor_repeat(file: int, number: int) -> None:
    """A prompt's room is filled with the same lines twice."""
    files = [*FILES, "// a copy of the head\n" + FILES[0]]
    found = Index(files).best(query_of(files[file]), number, ())
    shown = [files[place.file][place.begin:place.end] for place in found]
    assert len(set(shown)) == len(shown) <= number
    for i, one in enumerate(found):
        assert all(one.file != other.file or one.end <= other.begin or other.end <= one.begin
                   for other in found[:i])


def test_the_same_whatever_was_asked_before() -> None:
    """What a run finds depends on the order of its questions, or on the process."""
    index = Index(FILES)
    first = index.best(query_of(FILES[5]), 5, [5])
    index.kin_of_text(code(77) + "\nval neverSeenBefore = 1\n")
    index.best("neverSeenBefore", 5, ())
    assert index.best(query_of(FILES[5]), 5, [5]) == first
    program = (f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
               "import test_index as t\n"
               "print([tuple(p) for p in t.Index(t.FILES).best(t.query_of(t.FILES[5]), 5, [5])])")
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], text=True,
                          capture_output=True, check=True)
    assert done.stdout.strip() == str([tuple(place) for place in first])


def test_of_equal_pieces_the_first() -> None:
    """Equal scores are ordered by chance, and no run can be repeated."""
    files = [f"val common = shared{'a' * i}\n" for i in range(30)]
    assert Index(files).best("common", 3, [0]) == [Place(i, 0, len(files[i]) - 1) for i in (1, 2, 3)]


@pytest.mark.parametrize("files", [[], [""], ["\n\n"], ["{ }\n"], ["x" * 10**6]])
def test_nothing_to_find(files: list[str]) -> None:
    """A data set without files or words ends in a traceback."""
    index = Index(files)
    assert index.best("fun alpha()", 3, ()) == []
    assert index.kin_of_text("fun alpha()") == []


@pytest.mark.parametrize("query", ["", "\n\n", "{ } ;", "nobody knows these"])
def test_a_query_without_words(query: str) -> None:
    """The first completion of a file ends in a traceback, or is asked behind any pieces."""
    assert Index(["fun alpha() = 1\n"]).best(query, 3, ()) == []


def test_the_query_is_the_last_lines() -> None:
    """Pieces are looked for by what stands far from the cursor."""
    lines = [f"line {i}\n" for i in range(50)]
    text = "".join(lines)
    assert query_of(text) == "".join(lines[-QUERY_LINES:])
    assert query_of(text + "  half") == "".join(lines[1 - QUERY_LINES:]) + "  half"
    assert query_of("one\ntwo") == "one\ntwo"
    assert query_of("") == ""


def test_a_hundred_thousand_pieces_in_seconds() -> None:
    """Looking for pieces takes longer than training: 3,000 of them here."""
    draw = random.Random(3)
    words = [f"{draw.choice(NAMES)}{draw.choice(NAMES).title()}{i}" for i in range(3000)]
    files = ["".join(f"    val {draw.choice(words)} = {draw.choice(words)}({draw.choice(words)})\n"
                     for _ in range(110)) for _ in range(300)]
    begun = time.process_time()
    index = Index(files)
    built = time.process_time() - begun
    assert len(index.places) == 3_000
    begun = time.process_time()
    for text in files[:60]:
        index.best(query_of(text), 5, ())
    assert built < 3
    assert time.process_time() - begun < 3
