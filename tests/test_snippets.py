"""pipeline/retrieval/snippets.py: the words of code, and the pieces that files are cut into."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_runs import TEXTS

from pipeline.retrieval.snippets import (
    LONGEST_LINE,
    PIECE_LINES,
    PIECE_STEP,
    SHINGLE_WORDS,
    Vocabulary,
    pieces_of,
    shingles_of,
)

LINES = st.lists(st.sampled_from(("fun getName() {\n", "\n", "    \n", "}\n", "val a = 1\n", "\t// größe\n",
                                  "x" * (LONGEST_LINE + 1) + "\n", "\r\n")), max_size=70).map("".join)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    vocabulary = Vocabulary()
    numbers = vocabulary.read(text)
    spelled = {number: word for word, number in vocabulary.numbers.items()}
    return [spelled[number] for number in numbers.tolist()]


@pytest.mark.parametrize(("text", "expected"), [
    ("getUserName", ["get", "user", "name"]),
    ("parseXMLFile2", ["parse", "xml", "file", "2"]),
    ("MAX_LINE_LENGTH", ["max", "line", "length"]),
    ("snake_case_name", ["snake", "case", "name"]),
    ("UInt8Array", ["u", "int", "8", "array"]),
    ("größe Ключ 変数", ["größe", "ключ", "変数"]),
    ("a.b(c, 10)\n", ["a", "b", "c", "10", "\n"]),
    ("{ } ;", []),
    ("", []),
])
def test_the_words_of_identifiers(text: str, expected: list[str]) -> None:
    """Code that names the same thing in another case or convention is not found."""
    assert words(text) == expected


def test_words_are_found_again_whatever_was_read_later() -> None:
    """A query with a word that no piece has ends in an error, or finds pieces of another word."""
    vocabulary = Vocabulary()
    vocabulary.read("alpha beta")
    size = len(vocabulary.numbers)
    vocabulary.read("gamma")
    assert vocabulary.known("Gamma beta Beta\ndelta ALPHA", size) == [2, 1]


@settings(max_examples=200, deadline=None)
@given(st.one_of(TEXTS, LINES))
def test_pieces_cover_what_can_be_found(text: str) -> None:
    """A part of a file is never found, or a piece is not what stands in the file."""
    vocabulary = Vocabulary()
    numbers = vocabulary.read(text)
    pieces = pieces_of(text, numbers)
    covered = np.zeros(len(text), dtype=bool)
    for piece in pieces:
        shown = text[piece.begin:piece.end]
        assert shown.strip()
        assert shown.count("\n") < PIECE_LINES
        assert piece.begin == 0 or text[piece.begin - 1] == "\n" or not text[:piece.begin].strip()
        assert [n for n in vocabulary.read(shown).tolist() if n] == piece.words.tolist()
        covered[piece.begin:piece.end] = True
    begins = [piece.begin for piece in pieces]
    assert begins == sorted(begins)
    if max(map(len, text.split("\n"))) < LONGEST_LINE:
        left = "".join(character for character, inside in zip(text, covered, strict=True) if not inside)
        assert [word for word in words(left) if word != "\n"] == []


def test_pieces_are_windows_of_lines() -> None:
    """Pieces are longer than what a prompt has room for, or leave lines between them out."""
    text = "".join(f"line{i}\n" for i in range(45))
    found = [text[p.begin:p.end].split("\n") for p in pieces_of(text, Vocabulary().read(text))]
    assert [piece[0] for piece in found] == ["line0", "line10", "line20", "line30"]
    assert [len(piece) for piece in found] == [20, 20, 20, 15]
    assert PIECE_STEP < PIECE_LINES


def test_one_line_of_a_megabyte_gives_no_piece() -> None:
    """A file of data on one line fills every prompt, or takes minutes."""
    text = "val data = \"" + "abc1 " * 200_000 + "\""
    assert pieces_of(text, Vocabulary().read(text)) == []
    assert len(pieces_of("\n" * 40 + "val a\n", Vocabulary().read("\n" * 40 + "val a\n"))) == 1


def test_indentation_belongs_to_a_piece() -> None:
    """The first line of a piece that is shown has lost its place in the code."""
    text = "\n\n    val a = 1\n    val b = 2\n\n"
    [piece] = pieces_of(text, Vocabulary().read(text))
    assert text[piece.begin:piece.end] == "    val a = 1\n    val b = 2"


def test_shingles_do_not_depend_on_what_was_read_before() -> None:
    """Whether two files are copies depends on which others there are."""
    one, other = Vocabulary(), Vocabulary()
    other.read("something else entirely, and more of it")
    text = "fun a(b: Int) = b + 1\nfun c() = d()\n"
    found = shingles_of(one.read(text), one)
    assert found.tolist() == shingles_of(other.read(text), other).tolist() == sorted(set(found.tolist()))
    assert len(found) == 9 - SHINGLE_WORDS + 1
    assert len(shingles_of(one.read("{ }"), one)) == 0
    assert len(shingles_of(one.read("a b"), one)) == 1
