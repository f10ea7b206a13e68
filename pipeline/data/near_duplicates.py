"""Near-duplicates: sets of token n-grams (shingles), and the groups that their overlaps link."""
import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

NGRAM = 5  # tokens of a shingle
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# Of a set on disk, the shingles kept in memory: all of a small one's, then half, a quarter, at least an
# eighth, so that at least KEPT are left.
KEPT, MOST_HALVINGS = 64, 3
# Sets that share a shingle are all compared where they are few; of more, each with the first and the ones
# before it, in the order of their sizes.
FEW_SETS, SOME_SETS = 32, 8
PAIRS_AT_ONCE = 1 << 21  # candidate pairs counted at a time: some 50 MB
CANDIDATE_SHARE = 0.02  # of the smaller set's shingles, found to be shared before a pair is compared
MOST_COMPARED = 32  # larger sets that a set is compared with in vain, those first with which it shares most


class Rule(NamedTuple):
    """When two sets of shingles are linked (Broder 1997)."""
    jaccard: float  # at this Jaccard index, or
    containment: float | None = None  # where the larger holds this share of the smaller,
    fewest: int = 0  # which has at least so many shingles

    def common(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return how many shingles sets of these sizes must share to be linked (a real number)."""
        needed = self.jaccard * (one + other) / (1 + self.jaccard)
        if self.containment is None:
            return needed
        smaller = np.minimum(one, other)
        return np.where(smaller >= self.fewest, np.minimum(needed, self.containment * smaller), needed)

    def links(self, common: int, one: int, other: int) -> bool:
        """Return whether sets of these sizes that share `common` shingles are linked."""
        smaller = min(one, other)
        return common > 0 and (common >= self.jaccard * (one + other - common)
                               or (self.containment is not None and smaller >= self.fewest
                                   and common >= self.containment * smaller))


DUPLICATE = Rule(0.7)  # of such files, and methods, one is kept
SAME_SPLIT = Rule(0.5, 0.7, 160)  # such files are in one split; shorter ones are boilerplate in many
SAME_CONTENT = Rule(0.5, 0.7, 20)  # in words: such files are not shown as context of one another


def ngram_hashes(token_ids: np.ndarray, width: int) -> np.ndarray:
    """Return the (tokens - width + 1,) 64-bit hashes of the runs of `width` tokens; one of fewer tokens."""
    ids = token_ids.astype(np.uint64)
    width = min(width, len(ids))
    hashes = np.zeros(len(ids) - width + 1, dtype=np.uint64)
    for i in range(width):  # a polynomial in the ids, whose products wrap around
        hashes = (hashes + ids[i:len(ids) - width + 1 + i] + np.uint64(1)) * HASH_FACTOR
    return hashes


def shingles_of(token_ids: np.ndarray) -> np.ndarray:
    """Return the (n,) sorted uint32 hashes of the distinct token 5-grams of a file."""
    shingles = np.sort((ngram_hashes(token_ids, NGRAM) >> np.uint64(32)).astype(np.uint32))
    # np.unique hashes, and takes five times as long
    return shingles[np.r_[True, shingles[1:] != shingles[:-1]]]


def halvings_of(sizes: np.ndarray) -> np.ndarray:
    """Return how often sets on disk are halved to what is kept of them in memory."""
    return np.clip(np.log2(np.maximum(sizes, 1) / KEPT).astype(np.int64), 0, MOST_HALVINGS)


class ShingleSets:
    """Sets of shingles, numbered from 0 in the order in which they are added.

    With a `path`, they lie in that file, and memory holds 24 bytes and the smallest 64 to 127 hashes of each,
    or an eighth of a set of 512 and more; without, memory holds them whole.  The bound below which hashes are
    kept depends on the size alone, so that what two sets share among them estimates what they share.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.file = path, open(path, "wb+", buffering=0) if path else None  # noqa: SIM115
        self.sizes, self.places, self.keys = array("q"), array("q", [0]), array("Q")
        self.kept, self.kept_ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, shingles: np.ndarray) -> None:
        """Add a set, as sorted uint32 hashes."""
        data = np.ascontiguousarray(shingles, dtype=np.uint32).tobytes()
        self.sizes.append(len(shingles))
        self.places.append(self.places[-1] + len(data))
        self.keys.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()))
        if self.file:
            self.file.write(data)
            halvings = int(halvings_of(np.array([len(shingles)]))[0])
            if halvings:
                data = data[:4 * int(np.searchsorted(shingles, np.uint32((1 << 32) >> halvings)))]
        self.kept += data
        self.kept_ends.append(len(self.kept))

    def kept_of(self, i: int) -> np.ndarray:
        """Return what memory holds of a set."""
        begin, end = self.kept_ends[i], self.kept_ends[i + 1]
        return np.frombuffer(self.kept, dtype=np.uint32, count=(end - begin) // 4, offset=begin)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return a set, whole."""
        if not self.file:
            return self.kept_of(i)
        data = os.pread(self.file.fileno(), self.places[i + 1] - self.places[i], self.places[i])
        return np.frombuffer(data, dtype=np.uint32)

    def shared(self, i: int, j: int) -> int:
        """Return how many shingles two sets have in common."""
        one, other = sorted((self[i], self[j]), key=len)
        places = np.minimum(np.searchsorted(other, one), max(0, len(other) - 1))
        return int(np.count_nonzero(other[places] == one)) if len(one) else 0


class Links:
    """What is joined with what (union-find); a group is named by its smallest member."""

    def __init__(self, number: int):
        self.parent = list(range(number))

    def root(self, i: int) -> int:
        """Return the name of the group that holds `i`."""
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def roots(self, members: Iterable[int]) -> np.ndarray:
        """Return the name of each member's group."""
        return np.array([self.root(i) for i in members], dtype=np.int64)

    def join(self, one: int, other: int) -> None:
        """Make one group of two."""
        a, b = sorted((self.root(one), self.root(other)))
        self.parent[b] = a


def near_duplicate_groups(sets: ShingleSets, rule: Rule, chosen: Sequence[int] | None = None) -> np.ndarray:
    """Return the (n,) number of each set's group: what links connect, named by its first member.

    `chosen`: numbers of sets, in any order; groups are of positions in it (default: all sets).  Whether two
    sets are linked is decided on all of their shingles; equal sets are joined by a 64-bit hash.  Which
    pairs are looked at: those that share CANDIDATE_SHARE of what memory holds of the smaller one, as far as
    shingles of at most FEW_SETS sets, or of more with 2 * SOME_SETS others each, tell.  Groups do not
    depend on the order of the sets.

    Time: sorting the shingles in memory, at most FEW_SETS pairs for each, and MOST_COMPARED comparisons of a
    set that link nothing.  Memory: some 30 bytes for
    each, and PAIRS_AT_ONCE pairs.
    """
    chosen = np.arange(len(sets)) if chosen is None else np.asarray(chosen, dtype=np.int64)
    if not len(chosen):
        return np.zeros(0, dtype=np.int64)
    sizes = np.frombuffer(sets.sizes, dtype=np.int64)[chosen]
    keys = np.frombuffer(sets.keys, dtype=np.uint64)[chosen]
    order = np.lexsort([keys, -sizes])  # the largest first, equal sets beside each other
    fresh = np.r_[True, (keys[order][1:] != keys[order][:-1]) | (sizes[order][1:] != sizes[order][:-1])]
    fresh |= sizes[order] == 0  # nothing is like nothing
    unlike = order[fresh]  # one of equal sets
    numbers, links = chosen[unlike].tolist(), Links(len(unlike))
    left = [MOST_COMPARED] * len(unlike)
    for ones, others in _candidates(sets, chosen[unlike], rule):
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            if left[one] and links.root(one) != links.root(other):
                i, j = numbers[one], numbers[other]
                if rule.links(sets.shared(i, j), sets.sizes[i], sets.sizes[j]):
                    links.join(one, other)
                else:
                    left[one] -= 1
    roots = links.roots(range(len(unlike)))[np.cumsum(fresh) - 1]
    first = np.full(len(unlike), len(chosen), dtype=np.int64)
    np.minimum.at(first, roots, order)
    groups = np.empty(len(chosen), dtype=np.int64)
    groups[order] = first[roots]
    return groups


class _Postings:
    """Which of some sets share a shingle that memory holds; a set's later pairs are not listed again.

    Sets have numbers from 0; `owners` is sorted, and gives the set of each entry.  What other sets the
    entry's shingle has stand from `starts` on in `holders`, `earlier` of them before the entry itself,
    `counts` in all.
    """

    def __init__(self, sets: ShingleSets, numbers: np.ndarray):
        kept = [sets.kept_of(i) for i in numbers.tolist()]
        self.kept = np.array([len(found) for found in kept], dtype=np.int64)
        both = np.concatenate([np.zeros(0, np.uint32), *kept]).astype(np.uint64) << np.uint64(32)
        del kept
        both |= np.repeat(np.arange(len(numbers), dtype=np.uint64), self.kept)
        both.sort()
        same = (both[1:] >> np.uint64(32)) == (both[:-1] >> np.uint64(32))
        both = both[np.r_[False, same] | np.r_[same, False]] if len(both) else both  # shared ones alone
        hashes = (both >> np.uint64(32)).astype(np.uint32)
        self.holders = both.astype(np.uint32).astype(np.int32)  # the lower half
        del both
        begins = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]][:len(hashes)])
        lengths = np.diff(np.r_[begins, len(hashes)])
        entries = np.argsort(self.holders, kind="stable")
        self.owners = self.holders[entries]
        self.starts = np.repeat(begins, lengths)[entries]
        self.earlier = (entries - self.starts).astype(np.int32)
        self.counts = np.repeat(lengths, lengths)[entries].astype(np.int32)
        self.pairs = np.where(self.counts <= FEW_SETS, self.earlier, np.minimum(self.earlier, 2 * SOME_SETS))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of entries, all of some sets, with about PAIRS_AT_ONCE pairs."""
        ends = np.cumsum(np.bincount(self.owners, minlength=len(self.kept)))
        before = np.r_[0, np.cumsum(self.pairs)][np.r_[0, ends]]
        block = before[:-1] // PAIRS_AT_ONCE
        last = np.flatnonzero(np.r_[block[1:] != block[:-1], True])
        low = 0
        for high in ends[last].tolist():
            yield low, high
            low = high

    def pairs_of(self, low: int, high: int) -> np.ndarray:
        """Return the pairs of these entries' sets with earlier ones, `set * number of sets + earlier set`,
        sorted, each as often as they share a shingle here."""
        pairs = self.pairs[low:high].astype(np.int64)
        of_entry = np.repeat(np.arange(low, high), pairs)
        step = np.arange(len(of_entry)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        # the first ones, then those just before the entry
        jump = self.earlier[of_entry] - self.pairs[of_entry]
        place = self.starts[of_entry] + step + np.where(step >= SOME_SETS, jump, 0)
        keys = self.owners[of_entry].astype(np.int64) * len(self.kept) + self.holders[place]
        keys.sort()
        return keys


def _candidates(sets: ShingleSets, numbers: np.ndarray,
                rule: Rule) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of positions in `numbers` that may be linked, those with the most in common first."""
    sizes = np.frombuffer(sets.sizes, dtype=np.int64)[numbers]
    share = 0.5 ** halvings_of(sizes) if sets.file else np.ones(len(sizes))  # of a set that memory holds
    postings = _Postings(sets, numbers)
    often = np.bincount(postings.owners[postings.counts > FEW_SETS], minlength=len(numbers))
    often = often / np.maximum(1, postings.kept) * sizes  # shingles of each that many sets have
    for low, high in postings.blocks():
        pairs = postings.pairs_of(low, high)
        if not len(pairs):
            continue
        starts = np.flatnonzero(np.r_[True, pairs[1:] != pairs[:-1]])
        seen = np.diff(np.r_[starts, len(pairs)])
        ones, others = np.divmod(pairs[starts], len(numbers))
        both = np.minimum(share[ones], share[others])
        needed = both * rule.common(sizes[ones], sizes[others])
        needed -= (both < 1) * 4 * np.sqrt(needed)  # four standard deviations of a sample
        needed -= both * np.minimum(often[ones], often[others])  # what was not counted
        least = CANDIDATE_SHARE * both * np.minimum(sizes[ones], sizes[others])
        likely = np.flatnonzero((seen >= needed - 1e-6) & (seen >= least))
        likely = likely[np.argsort(-seen[likely], kind="stable")]
        yield ones[likely], others[likely]


class NearDuplicates:
    """The groups of sets that `rule` links, and which of them another set belongs to.

    Memory: 8 bytes a shingle.  `groups`: (sets,) the number of each set's group, that of its first set.
    """

    def __init__(self, shingles: Iterable[np.ndarray], rule: Rule = SAME_CONTENT):
        """Group the sets of sorted uint32 hashes."""
        sets, self.rule = ShingleSets(), rule
        for found in shingles:
            sets.add(found)
        self.groups = near_duplicate_groups(sets, rule)
        self.sizes = np.array(sets.sizes, dtype=np.int64)
        both = np.frombuffer(sets.kept, dtype=np.uint32).astype(np.uint64) << np.uint64(32)
        both |= np.repeat(np.arange(len(sets), dtype=np.uint64), self.sizes)
        both.sort()
        self.holders = both.astype(np.uint32).astype(np.int32)  # the lower half
        self.hashes = (both >> np.uint64(32)).astype(np.uint32)

    def near(self, shingles: np.ndarray) -> np.ndarray:
        """Return the numbers of the groups with a set that a set of these shingles is linked with."""
        begins = np.searchsorted(self.hashes, shingles, side="left")
        ends = np.searchsorted(self.hashes, shingles, side="right")
        found = [self.holders[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
                 if end > begin]
        if not found:
            return np.zeros(0, dtype=np.int64)
        common = np.bincount(np.concatenate(found), minlength=len(self.sizes))
        linked = [i for i in np.flatnonzero(common).tolist()
                  if self.rule.links(int(common[i]), len(shingles), int(self.sizes[i]))]
        return np.unique(self.groups[linked])
