"""Near-duplicates: n-grams of tokens, MinHash signatures and the clusters that they make."""
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

# MinHash: 256 permutations of 32 bits; 51 bands of 5 rows find 99.99 % of the pairs with a similarity of 0.7.
PERMUTATIONS, BAND_ROWS, NEAR_DUPLICATE_JACCARD, NGRAM = 256, 5, 0.7, 5
MINHASH_SEED, MINHASH_BLOCK = 1, 512


def ngram_hashes(token_ids: np.ndarray, width: int) -> np.ndarray:
    """Return the (tokens - width + 1,) 64-bit hashes of the runs of `width` tokens; one of fewer tokens."""
    ids = token_ids.astype(np.uint64)
    width = min(width, len(ids))
    hashes = np.zeros(len(ids) - width + 1, dtype=np.uint64)
    for i in range(width):  # a polynomial in the ids, whose products wrap around
        hashes = (hashes + ids[i:len(ids) - width + 1 + i] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return hashes


def empty_sketch() -> Any:
    """Return datasketch's MinHash of an empty set, whose permutations all signatures share."""
    from datasketch import MinHash  # 0.6 s, which the worker processes pay and their parent does not

    return MinHash(PERMUTATIONS, seed=MINHASH_SEED, hashfunc=np.asarray)


def minhash_signature(token_ids: np.ndarray, empty: Any) -> np.ndarray:
    """Return the (PERMUTATIONS,) uint32 MinHash of a file's set of token 5-grams (Broder 1997).

    `empty`: the `empty_sketch`.
    """
    shingles = np.sort((ngram_hashes(token_ids, NGRAM) >> np.uint64(32)).astype(np.uint32))
    # np.unique hashes, and takes five times as long
    shingles = shingles[np.r_[True, shingles[1:] != shingles[:-1]]]
    sketch = empty.copy()
    for start in range(0, len(shingles), MINHASH_BLOCK):  # in blocks that stay in the cache
        # an array of hashes as one value: no Python integer for each
        sketch.update_batch([shingles[start:start + MINHASH_BLOCK]])
    return sketch.hashvalues


def cluster_near_duplicates(signatures: np.ndarray) -> np.ndarray:
    """Return for each of the (files, PERMUTATIONS) MinHash signatures the index of its cluster's first file.

    Two files are linked where the share of equal values, which estimates the Jaccard similarity of their
    5-grams, is at least NEAR_DUPLICATE_JACCARD; clusters are what links connect (union-find).  Only files
    that agree in one band of BAND_ROWS values are compared (locality-sensitive hashing, Leskovec, Rajaraman
    and Ullman, ch. 3).
    """
    parent = list(range(len(signatures)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for first in range(0, PERMUTATIONS - BAND_ROWS + 1, BAND_ROWS):
        band = np.ascontiguousarray(signatures[:, first:first + BAND_ROWS])
        keys = band.view([("", band.dtype)] * BAND_ROWS).ravel()
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1], True])
        for begin, end in itertools.pairwise(starts.tolist()):
            if end - begin > 1:
                _link_bucket(signatures, order[begin:end], parent, root)
    return np.array([root(i) for i in range(len(signatures))], dtype=np.int64)


def _link_bucket(signatures: np.ndarray, members: np.ndarray, parent: list[int],
                 root: Callable[[int], int]) -> None:
    """Join those `members` of one bucket whose signatures are alike; skip pairs that are joined already."""
    for i, member in enumerate(members[:-1].tolist()):
        others = np.array([m for m in members[i + 1:].tolist() if root(m) != root(member)], dtype=np.int64)
        if len(others):
            similarity = (signatures[others] == signatures[member]).mean(axis=1)
            for other in others[similarity >= NEAR_DUPLICATE_JACCARD].tolist():
                a, b = sorted((root(member), root(other)))
                parent[b] = a
