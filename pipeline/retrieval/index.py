"""A retriever: the pieces of a repository's files that are most like what stands before a cursor.

BM25 (Robertson and Zaragoza 2009, in the form of Lucene) over the words of pieces, by bm25s.
"""
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.data.near_duplicates import NearDuplicates
from pipeline.retrieval.snippets import Vocabulary, pieces_of, shingles_of

QUERY_LINES = 20  # before the cut, by whose words pieces are looked for


class Place(NamedTuple):
    """Where a piece that was found stands: the number of its file, and characters in it."""
    file: int
    begin: int
    end: int


def query_of(before: str) -> str:
    """Return what pieces are looked for with: the last QUERY_LINES lines of what stands before a cut."""
    place = len(before)
    for _ in range(QUERY_LINES):
        place = before.rfind("\n", 0, max(0, place - 1)) + 1
        if not place:
            break
    return before[place:]


class Index:
    """The pieces of some files, to be looked for.

    Memory: 0.8 kB a piece of 20 lines (8 bytes a word of a piece, each once, and 8 a shingle of its file),
    and while it is built, 1.5 kB more.  Nothing depends on the order of anything but the files.
    """

    def __init__(self, texts: Iterable[str]):
        """Read the files' texts, once; a file is named by its number in their order."""
        import bm25s  # 0.8 s, which only runs that retrieve pay

        self.vocabulary = Vocabulary()
        words: list[list[int]] = []
        shingles: list[np.ndarray] = []
        places: list[tuple[int, int, int, int]] = []  # file, begin, end, hash of the words
        for file, text in enumerate(texts):
            numbers = self.vocabulary.read(text)
            for piece in pieces_of(text, numbers):
                places.append((file, piece.begin, piece.end, zlib.crc32(piece.words.tobytes())))
                words.append(piece.words.tolist())
            shingles.append(shingles_of(numbers, self.vocabulary))
        self.places = np.array(places, dtype=np.int64).reshape(-1, 4)
        # pieces of file i: first_piece[i] to first_piece[i + 1]
        self.first_piece = np.searchsorted(self.places[:, 0], np.arange(len(shingles) + 1))
        self.copies = NearDuplicates(shingles)
        self.scorer = bm25s.BM25(csc_backend="numpy")  # the other, where scipy is there, orders otherwise
        self.size = len(self.vocabulary.numbers)  # words of files that are read later come behind
        if words:
            self.scorer.index((words, dict(self.vocabulary.numbers)), create_empty_token=False,
                              show_progress=False)

    def kin(self, file: int) -> list[int]:
        """Return the numbers of the files of a file's own group of near-copies, itself among them."""
        return np.flatnonzero(self.copies.groups == self.copies.groups[file]).tolist()

    def kin_of_text(self, text: str) -> list[int]:
        """Return the numbers of the files in the groups of near-copies that another file belongs to."""
        numbers = self.vocabulary.read(text)
        groups = self.copies.near(shingles_of(numbers, self.vocabulary))
        return np.flatnonzero(np.isin(self.copies.groups, groups)).tolist()

    def best(self, query: str, number: int, without: Iterable[int]) -> list[Place]:
        """Return at most `number` pieces with the highest scores, the best first, of no file of `without`.

        A piece shares a word with the query; of pieces that overlap, or have the same words, the best is
        taken, of equal ones the first.
        """
        known = self.vocabulary.known(query, self.size) if len(self.places) else []
        if not known:
            return []
        scores = self.scorer.get_scores_from_ids(known)
        for file in without:
            scores[self.first_piece[file]:self.first_piece[file + 1]] = 0
        found: list[tuple[int, int, int, int]] = []
        # overlapping ones are passed over: three of any that are taken, at most, and as many of equal words
        for at_least in (8 * number, len(scores)):
            at_least = min(at_least, len(scores))
            bound = np.partition(scores, len(scores) - at_least)[len(scores) - at_least]
            candidates = np.flatnonzero((scores >= bound) & (scores > 0))
            found = self._apart(candidates[np.argsort(-scores[candidates], kind="stable")], number)
            if len(found) == number:
                break
        return [Place(*place[:3]) for place in found]

    def _apart(self, candidates: np.ndarray, number: int) -> list[tuple[int, int, int, int]]:
        """Return the first `number` of the pieces that neither overlap nor have the same words."""
        found: list[tuple[int, int, int, int]] = []
        for file, begin, end, digest in map(tuple, self.places[candidates].tolist()):
            if all(digest != other[3] and (file != other[0] or end <= other[1] or begin >= other[2])
                   for other in found):
                found.append((file, begin, end, digest))
                if len(found) == number:
                    break
        return found
