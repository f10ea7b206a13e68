"""Pieces of files: what is looked for in a repository, and the words by which it is found."""
import re
import zlib
from array import array
from typing import NamedTuple

import numpy as np

PIECE_LINES, PIECE_STEP = 20, 10  # lines of a piece, and how many further down the next one begins
LONGEST_LINE = 1000  # characters; in a piece with a longer line stands data, not code
SHINGLE_WORDS = 5
# parts of identifiers, which underscores and a change of case divide; letters beyond ASCII count as small
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+|\n")
LINE_END = 0  # the number of the line end among the words
_FACTOR = np.uint32(0x9E3779B1)


class Vocabulary(dict):
    """The number of every word that was met, by its spelling; words are the same whatever their case."""

    def __init__(self) -> None:
        super().__init__({"\n": LINE_END})
        self.numbers = {"\n": LINE_END}  # of the words in small letters
        self.hashes = array("I", [0])  # of each word, 32 bits, which do not depend on what else was met

    def __missing__(self, spelling: str) -> int:
        word = spelling.lower()
        number = self.numbers.setdefault(word, len(self.numbers))
        if number == len(self.hashes):
            self.hashes.append(zlib.crc32(word.encode()))
        self[spelling] = number
        return number

    def read(self, text: str) -> np.ndarray:
        """Return the (n,) int32 numbers of a text's words and line ends, in their order."""
        return np.array([self[word] for word in WORD.findall(text)], dtype=np.int32)

    def known(self, text: str, size: int) -> list[int]:
        """Return the numbers of those of a text's words that were among the first `size` to be met, each
        once, in their order."""
        found = (self.numbers.get(word.lower(), size) for word in WORD.findall(text))
        return [number for number in dict.fromkeys(found) if LINE_END < number < size]


class Piece(NamedTuple):
    """Where a piece stands in its file, in characters, and the numbers of its words."""
    begin: int
    end: int
    words: np.ndarray


def pieces_of(text: str, words: np.ndarray) -> list[Piece]:
    """Return the pieces of a file: PIECE_LINES lines, every PIECE_STEP lines, without blank lines at their
    ends.

    Left out: pieces without a word, and those with a line of more than LONGEST_LINE characters.  `words`:
    what `Vocabulary.read` gives for the text.  Time: linear.
    """
    ends = [match.end() for match in re.finditer("\n", text)]
    if not text.endswith("\n"):
        ends.append(len(text))
    begins = [0, *ends[:-1]]
    line_ends = np.flatnonzero(words == LINE_END)
    word_begins, word_ends = [0, *(line_ends + 1).tolist()], [*line_ends.tolist(), len(words)]
    long = {i for i, (begin, end) in enumerate(zip(begins, ends, strict=True)) if end - begin > LONGEST_LINE}
    found = []
    for first in range(0, max(1, len(ends) - (PIECE_LINES - PIECE_STEP)), PIECE_STEP):
        last = min(first + PIECE_LINES, len(ends)) - 1
        inside = words[word_begins[first]:word_ends[last]]
        inside = inside[inside != LINE_END]
        if not len(inside) or (long and not long.isdisjoint(range(first, last + 1))):
            continue
        piece = text[begins[first]:ends[last]]
        lead = len(piece) - len(piece.lstrip())
        begin = begins[first] + piece.rfind("\n", 0, lead) + 1  # indentation belongs to the first line
        found.append(Piece(begin, begins[first] + len(piece.rstrip()), inside))
    return found


def shingles_of(words: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return the sorted (n,) uint32 hashes of a text's runs of SHINGLE_WORDS words, each once; one of fewer
    words, none of none.  `words`: what `Vocabulary.read` gives for the text."""
    hashes = np.frombuffer(vocabulary.hashes, dtype=np.uint32)[words[words != LINE_END]]
    width = min(SHINGLE_WORDS, len(hashes))
    if not width:
        return hashes
    found = np.zeros(len(hashes) - width + 1, dtype=np.uint32)
    for i in range(width):  # a polynomial in the words' hashes, whose products wrap around
        found = (found + hashes[i:len(hashes) - width + 1 + i]) * _FACTOR
        found ^= found >> np.uint32(15)
    return np.unique(found)
