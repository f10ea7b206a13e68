"""Which split a file belongs to."""
import argparse
import hashlib
from collections import Counter

import numpy as np

from pipeline.preparation.duplicates import cluster_near_duplicates

SPLITS = ("train", "validation", "test")


def choose_split(digest: bytes, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """Return the split of a file (or cluster) from its content's hash and the seed alone."""
    number = int.from_bytes(hashlib.sha256(b"%d:" % seed + digest).digest()[:8]) / 2**64
    if number < test_fraction:
        return "test"
    return "validation" if number < test_fraction + validation_fraction else "train"


def assign_splits(digests: list[bytes], signatures: np.ndarray,
                  args: argparse.Namespace) -> tuple[list[str | None], Counter]:
    """Return each file's split, or None for a duplicate that is dropped, and the counts of what was dropped.

    A cluster is represented by its file with the smallest digest, whatever the order of the files: it is the
    one that is kept, and its digest decides the split of all.
    """
    clusters = cluster_near_duplicates(signatures)
    # Exact duplicates are in one cluster, and have equal digests: the first of them represents it.
    representative: dict[int, int] = {}
    for i, cluster in enumerate(clusters.tolist()):
        best = representative.setdefault(cluster, i)
        if digests[i] < digests[best]:
            representative[cluster] = i
    counts: Counter = Counter()
    splits: list[str | None] = []
    seen: set[bytes] = set()
    for i, cluster in enumerate(clusters.tolist()):
        best = representative[cluster]
        exact = digests[i] in seen
        seen.add(digests[i])
        if i != best and (exact or args.near_duplicates == "drop"):
            exact = exact or digests[i] == digests[best]
            counts["exact duplicate" if exact else "near-duplicate"] += 1
            splits.append(None)
        else:
            splits.append(choose_split(digests[best], args.seed, args.validation_fraction,
                                       args.test_fraction))
    return splits, counts


def split_by_file(digests: list[bytes], args: argparse.Namespace) -> list[str]:
    """Return what splitting file by file, and dropping nothing, would give: what leakage is compared with."""
    return [choose_split(digest + b"%d" % i, args.seed, args.validation_fraction, args.test_fraction)
            for i, digest in enumerate(digests)]
