"""Near-duplicates and kin: n-grams of tokens, MinHash signatures, and what they link."""
from typing import Any

import numpy as np

from pipeline.data.near_copies import FEWEST_CONTAINED, Links, NearCopies

# MinHash: 256 permutations of 32 bits; 51 bands of 5 rows find 99.99 % of the pairs with a similarity of 0.7.
PERMUTATIONS, BAND_ROWS, NEAR_DUPLICATE_JACCARD, NGRAM = 256, 5, 0.7, 5
# Methods are many and short: 25 bands of 5 rows find 99 % of such pairs, in half the memory.
METHOD_PERMUTATIONS = 128
# Kin: 64 bands of 4 rows find 98 % of the pairs with a similarity of 0.5.
KIN_JACCARD, KIN_BAND_ROWS = 0.5, 4
SKETCH_SHARE = 8  # of a file's 5-grams, one in so many is kept to find what it is contained in
MINHASH_SEED, MINHASH_BLOCK = 1, 512
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
MOST_LEADERS = 64  # files of a bucket that are compared with all in it; a bucket of so many is compared whole


def ngram_hashes(token_ids: np.ndarray, width: int) -> np.ndarray:
    """Return the (tokens - width + 1,) 64-bit hashes of the runs of `width` tokens; one of fewer tokens."""
    ids = token_ids.astype(np.uint64)
    width = min(width, len(ids))
    hashes = np.zeros(len(ids) - width + 1, dtype=np.uint64)
    for i in range(width):  # a polynomial in the ids, whose products wrap around
        hashes = (hashes + ids[i:len(ids) - width + 1 + i] + np.uint64(1)) * HASH_FACTOR
    return hashes


def empty_sketch(permutations: int = PERMUTATIONS) -> Any:
    """Return datasketch's MinHash of an empty set, whose permutations all signatures share."""
    from datasketch import MinHash  # 0.6 s, which the worker processes pay and their parent does not

    return MinHash(permutations, seed=MINHASH_SEED, hashfunc=np.asarray)


def shingles_of(token_ids: np.ndarray) -> np.ndarray:
    """Return the (n,) sorted uint32 hashes of the distinct token 5-grams of a file."""
    shingles = np.sort((ngram_hashes(token_ids, NGRAM) >> np.uint64(32)).astype(np.uint32))
    # np.unique hashes, and takes five times as long
    return shingles[np.r_[True, shingles[1:] != shingles[:-1]]]


def minhash_signature(token_ids: np.ndarray, empty: Any) -> np.ndarray:
    """Return the (permutations,) uint32 MinHash of a file's set of token 5-grams (Broder 1997).

    `empty`: the `empty_sketch`.
    """
    return minhash_of_shingles(shingles_of(token_ids), empty)


def minhash_of_shingles(shingles: np.ndarray, empty: Any) -> np.ndarray:
    """Return `minhash_signature` of the `shingles_of` a file."""
    sketch = empty.copy()
    for start in range(0, len(shingles), MINHASH_BLOCK):  # in blocks that stay in the cache
        # an array of hashes as one value: no Python integer for each
        sketch.update_batch([shingles[start:start + MINHASH_BLOCK]])
    return sketch.hashvalues


def sampled_shingles(shingles: np.ndarray) -> np.ndarray:
    """Return the shingles that a file is compared by as a part of another: one in SKETCH_SHARE, the same ones
    in every file (Broder 1997), by which shares of them are estimated; none of a small file's."""
    sampled = shingles[:np.searchsorted(shingles, np.uint32((1 << 32) // SKETCH_SHARE))].copy()
    return sampled if len(sampled) >= FEWEST_CONTAINED else sampled[:0]


def find_kin(signatures: np.ndarray, samples: list[np.ndarray]) -> list[list[int]]:
    """Return the families of files: what is linked at KIN_JACCARD, or by one being contained in the other
    (NearCopies).  `samples`: the `sampled_shingles` of each file."""
    links = Links(len(signatures))
    alike = cluster_near_duplicates(signatures, KIN_JACCARD, KIN_BAND_ROWS)
    for groups in (alike, NearCopies(samples).groups):
        for i, first in enumerate(groups.tolist()):
            if i != first:
                links.join(i, first)
    families: dict[int, list[int]] = {}
    for i, root in enumerate(links.roots(range(len(signatures))).tolist()):
        families.setdefault(root, []).append(i)
    return list(families.values())


def cluster_near_duplicates(signatures: np.ndarray, jaccard: float = NEAR_DUPLICATE_JACCARD,
                            band_rows: int = BAND_ROWS) -> np.ndarray:
    """Return for each of the (files, permutations) MinHash signatures the index of its cluster's first file.

    Two files are linked where the share of equal values, which estimates the Jaccard similarity of their
    5-grams, is at least `jaccard`; clusters are what links connect.  Equal signatures are joined first, and
    count once.  Of the others only those are compared that agree in one band of `band_rows` values
    (locality-sensitive hashing, Leskovec, Rajaraman and Ullman, ch. 3), which a sort brings together: a
    bucket.  Clusters do not depend on the order of the files.

    Time: linear in the files, but for sorting them once a band (n log n).  In each band a file is compared
    with at most MOST_LEADERS others and two neighbours, however many files share its bucket.  Memory: 8 bytes
    a file and band.
    """
    if not len(signatures):
        return np.zeros(0, dtype=np.int64)
    # equal ones by a hash of 64 bits, in its order: among a million signatures two that differ share one with
    # a probability of 3e-8
    _, first, copy_of = np.unique(_band_keys(signatures, slice(None), signatures.shape[1])[0],
                                  return_index=True, return_inverse=True)
    links, keys = Links(len(first)), _band_keys(signatures, first, band_rows)
    for band in range(len(keys)):
        order = np.argsort(keys[band], kind="stable")
        key, label = keys[band][order], links.roots(order.tolist())
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        ends = np.r_[starts[1:], len(key)]
        apart = np.minimum.reduceat(label, starts) != np.maximum.reduceat(label, starts)
        for begin, end in zip(starts[apart].tolist(), ends[apart].tolist(), strict=True):
            members = order[begin:end]
            if _link_leaders(signatures[first[members]], members, links, band, jaccard):
                # beside each other: those that also agree in the bands that follow
                following = [keys[(band + step) % len(keys)][members] for step in (2, 1)]
                members = members[np.lexsort(following)]
                _link_neighbours(signatures[first[members]], members, links, jaccard)
    roots = links.roots(range(len(first)))
    representative = first.copy()
    np.minimum.at(representative, roots, first)
    return representative[roots][copy_of.ravel()]


def _band_keys(signatures: np.ndarray, chosen: np.ndarray | slice, band_rows: int) -> np.ndarray:
    """Return the (bands, files) 64-bit hashes of each band's values, of the `chosen` files."""
    keys = np.zeros((signatures.shape[1] // band_rows, len(signatures[chosen, 0])), dtype=np.uint64)
    for row in range(band_rows):
        for band, key in enumerate(keys):  # one at a time: no copy of all signatures
            key += signatures[chosen, band * band_rows + row]
            key += np.uint64(1)
            key *= HASH_FACTOR
    return keys


def _alike(some: np.ndarray, others: np.ndarray, jaccard: float) -> np.ndarray:
    """Return the rows in which signatures are to be linked."""
    return np.flatnonzero(np.count_nonzero(some == others, axis=1) >= jaccard * some.shape[1])


def _link_leaders(rows: np.ndarray, members: np.ndarray, links: Links, band: int, jaccard: float) -> bool:
    """Join members of one bucket by comparing some, the leaders, with all; return whether pairs are left.
    `rows`: the signatures of the members.

    None is left where there were few members, or where all that have not led are joined already.  Leaders are
    drawn: of many that are not alike, each leads in some band.
    """
    # labels of this bucket alone: 0, 1, 2 ...
    group = np.unique(links.roots(members.tolist()), return_inverse=True)[1]
    waiting = np.ones(len(members), dtype=bool)
    drawn = np.arange(len(members))
    if len(members) > MOST_LEADERS:  # else all may lead, in any order
        drawn = np.random.default_rng(band).permutation(len(members))
    for _ in range(MOST_LEADERS):
        # those of the largest group need not lead, if all others do
        candidates = drawn[waiting[drawn] & (group[drawn] != np.bincount(group).argmax())]
        if not len(candidates):
            return False
        leader = candidates[0]
        waiting[leader] = False
        alike = _alike(rows, rows[leader], jaccard)
        found, one_of = np.unique(group[alike], return_index=True)
        for member in members[alike[one_of]].tolist():
            links.join(int(members[leader]), member)
        if len(found) > 1:
            group[np.isin(group, found)] = group[leader]
    return True


def _link_neighbours(rows: np.ndarray, members: np.ndarray, links: Links, jaccard: float) -> None:
    """Join those of a bucket that are alike and stand beside each other; `rows`: their signatures."""
    for i in _alike(rows[1:], rows[:-1], jaccard).tolist():
        links.join(int(members[i]), int(members[i + 1]))
