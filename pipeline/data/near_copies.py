"""Near-copies among files: which must not be shown to a model that is asked for one of them."""
import itertools
from collections.abc import Iterable

import numpy as np

JACCARD, CONTAINMENT = 0.5, 0.7  # of shingles, from which on two files are linked
FEWEST_CONTAINED = 20  # shingles that a file has at least before it counts as contained in another
# Files that share a shingle are all compared where they are few; of more, each with the first and the next.
FEW_FILES = 32
PAIRS_AT_ONCE = 1 << 21  # that are counted at a time: some 50 MB
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

    Memory: 8 bytes a shingle, which each file has about as many of as words; 17 while they are sorted, and
    PAIRS_AT_ONCE pairs of files.  Time: sorting them, and comparing pairs of which there are at most
    FEW_FILES for a shingle of a file.
    """

    def __init__(self, shingles: list[np.ndarray]):
        """Group files by their (n,) sorted uint32 `shingles`, of each file."""
        self.sizes = np.array([len(found) for found in shingles], dtype=np.int64)
        both = np.empty(int(self.sizes.sum()), dtype=np.uint64)  # a shingle, and then the number of its file
        begin = 0
        for number, found in enumerate(shingles):
            both[begin:begin + len(found)] = found.astype(np.uint64) << np.uint64(32) | np.uint64(number)
            begin += len(found)
        both.sort()
        self.files = both.astype(np.int32)  # the lower half
        both >>= np.uint64(32)
        self.hashes = both.astype(np.uint32)
        del both
        links = Links(len(shingles))
        for one, other in self._linked(shingles):
            links.join(one, other)
        # (files,) the number of each file's group: that of its first file
        self.groups = links.roots(range(len(shingles)))

    def _linked(self, shingles: list[np.ndarray]) -> Iterable[tuple[int, int]]:
        """Yield the pairs of files that are linked."""
        for keys in self._candidates():
            starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
            ones, others = np.divmod(keys[starts], len(shingles))
            shared = np.diff(np.r_[starts, len(keys)])
            likely = shared >= CANDIDATE_SHARE * np.minimum(self.sizes[ones], self.sizes[others])
            for one, other in zip(ones[likely].tolist(), others[likely].tolist(), strict=True):
                common = len(np.intersect1d(shingles[one], shingles[other], assume_unique=True))
                if _is_link(common, len(shingles[one]), len(shingles[other])):
                    yield one, other

    def _candidates(self) -> Iterable[np.ndarray]:
        """Yield pairs of files, `first * number of files + second`, sorted, each as often as they share a
        shingle: those of some first files at a time, about PAIRS_AT_ONCE."""
        number = len(self.sizes)
        pairs = np.zeros(number, dtype=np.int64)  # of each file as the first
        for ones, _ in self._sharing():
            pairs += np.bincount(ones, minlength=number)
        block = np.cumsum(pairs) // PAIRS_AT_ONCE
        for i in np.unique(block[pairs > 0]):
            low, high = np.searchsorted(block, [i, i + 1])
            keys, filled = np.empty(int(pairs[low:high].sum()), dtype=np.int64), 0
            for ones, others in self._sharing():
                chosen = np.flatnonzero((ones >= low) & (ones < high))
                part = keys[filled:filled + len(chosen)]
                np.multiply(ones[chosen], number, out=part, dtype=np.int64)
                part += others[chosen]
                filled += len(chosen)
            keys.sort()
            yield keys

    def _sharing(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs of files that share a shingle, once for each, as the first files and the second."""
        same = self.hashes[1:] == self.hashes[:-1]  # as the next one: a run of so many, but for its last
        starts = np.flatnonzero(same & ~np.r_[False, same[:-1]])
        counts = np.flatnonzero(same & ~np.r_[same[1:], False]) - starts + 2
        for count in range(2, FEW_FILES + 1):
            first = starts[counts == count]
            for one, other in itertools.combinations(range(count), 2) if len(first) else ():
                yield self.files[first + one], self.files[first + other]
        many = counts > FEW_FILES
        first, following = starts[many], counts[many] - 1
        # the places behind the first of each run
        before = np.cumsum(following) - following
        behind = np.arange(following.sum()) + np.repeat(first + 1 - before, following)
        yield self.files[np.repeat(first, following)], self.files[behind]
        yield self.files[behind - 1], self.files[behind]

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
