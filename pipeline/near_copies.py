"""Near-copies among files: which must not be shown to a model that is asked for one of them."""
import itertools
from collections.abc import Iterable

import numpy as np

JACCARD, CONTAINMENT = 0.5, 0.7  # of shingles, from which on two files are linked
FEWEST_CONTAINED = 20  # shingles that a file has at least before it counts as contained in another
# Files that share a shingle are all compared where they are few; of more, each with the first and the next.
FEW_FILES = 32
CANDIDATE_SHARE = 0.1  # of the smaller file's shingles, shared with few others, before a pair is compared


class Links:
    """What is joined with what (union-find); a set is named by its smallest member."""

    def __init__(self, number: int):
        self.parent = list(range(number))

    def root(self, i: int) -> int:
        """Return the name of the set that holds `i`."""
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def roots(self, members: Iterable[int]) -> np.ndarray:
        """Return the name of each member's set."""
        return np.array([self.root(i) for i in members], dtype=np.int64)

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        a, b = sorted((self.root(one), self.root(other)))
        self.parent[b] = a


class NearCopies:
    """The groups of files that links connect: at a Jaccard index of JACCARD, or a share of CONTAINMENT of
    the smaller file's shingles in the larger one (Broder 1997).

    Memory: 8 bytes a shingle, which each file has about as many of as words.  Time: sorting them, and
    comparing pairs of which there are at most FEW_FILES for a shingle of a file.
    """

    def __init__(self, shingles: list[np.ndarray]):
        """Group files by their (n,) sorted uint32 `shingles`, of each file."""
        self.sizes = np.array([len(found) for found in shingles], dtype=np.int64)
        hashes = np.concatenate([np.zeros(0, dtype=np.uint32), *shingles])
        files = np.repeat(np.arange(len(shingles), dtype=np.int32), self.sizes)
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.files = hashes[order], files[order]
        links = Links(len(shingles))
        for one, other in self._linked(shingles):
            links.join(one, other)
        # (files,) the number of each file's group: that of its first file
        self.groups = links.roots(range(len(shingles)))

    def _linked(self, shingles: list[np.ndarray]) -> Iterable[tuple[int, int]]:
        """Yield the pairs of files that are linked."""
        number = len(shingles)
        pairs, shared = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._candidates(number)]),
                                  return_counts=True)
        ones, others = pairs // max(1, number), pairs % max(1, number)
        likely = shared >= CANDIDATE_SHARE * np.minimum(self.sizes[ones], self.sizes[others])
        for one, other in zip(ones[likely].tolist(), others[likely].tolist(), strict=True):
            common = len(np.intersect1d(shingles[one], shingles[other], assume_unique=True))
            if _is_link(common, len(shingles[one]), len(shingles[other])):
                yield one, other

    def _candidates(self, number: int) -> Iterable[np.ndarray]:
        """Yield pairs of files that share a shingle, as `first * number + second`, once for each."""
        starts = np.flatnonzero(np.r_[True, self.hashes[1:] != self.hashes[:-1]][:len(self.hashes)])
        counts = np.diff(np.r_[starts, len(self.hashes)])
        files = self.files.astype(np.int64)
        for count in range(2, FEW_FILES + 1):
            members = files[starts[counts == count][:, None] + np.arange(count)]
            if not len(members):
                continue
            for one, other in itertools.combinations(range(count), 2):
                yield members[:, one] * number + members[:, other]
        for start, count in zip(starts[counts > FEW_FILES].tolist(), counts[counts > FEW_FILES].tolist(),
                                strict=True):
            members = files[start:start + count]
            yield members[0] * number + members[1:]
            yield members[:-1] * number + members[1:]

    def near(self, shingles: np.ndarray) -> np.ndarray:
        """Return the numbers of the groups with a file that a file of these shingles is linked with."""
        begins = np.searchsorted(self.hashes, shingles, side="left")
        ends = np.searchsorted(self.hashes, shingles, side="right")
        found = [self.files[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
                 if end > begin]
        if not found:
            return np.zeros(0, dtype=np.int64)
        common = np.bincount(np.concatenate(found), minlength=len(self.sizes))
        linked = [i for i in np.flatnonzero(common).tolist()
                  if _is_link(int(common[i]), len(shingles), int(self.sizes[i]))]
        return np.unique(self.groups[linked])


def _is_link(common: int, one: int, other: int) -> bool:
    smaller = min(one, other)
    return (common >= JACCARD * (one + other - common)
            or (smaller >= FEWEST_CONTAINED and common >= CONTAINMENT * smaller))
