"""Near-duplicates: seconds for 1, 2 and 4 times the files, where many of them share a bucket.

    copies:      one file, N times over
    variants:    N files of which each pair has about 80 % of its 5-grams in common: one cluster
    boilerplate: about 50 %: they share buckets, and none is another's near-duplicate
    families:    pairs of near-duplicates among such files

Signatures are made, not computed from text: a value of a file's differs from the common one with the chance
that gives the share.  Beside them, up to --compare files, a comparison pair by pair, whose clusters have to
be the same.

Run:    python perf/duplicates.py
"""
import argparse
import sys
import time

import numpy as np
from measure import ROOT, machine, median

sys.path.insert(0, str(ROOT))
from pipeline.data.near_duplicates import NEAR_DUPLICATE_JACCARD, PERMUTATIONS, cluster_near_duplicates


def changed(signatures: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """Return the signatures with a share of their values drawn anew."""
    where = draw.random(signatures.shape) < share
    return np.where(where, draw.integers(0, 2**32, signatures.shape, dtype=np.uint32), signatures)


def corpora(files: int) -> dict[str, np.ndarray]:
    """Return the (files, PERMUTATIONS) signatures of each kind."""
    draw = np.random.default_rng(0)
    copies = np.repeat(draw.integers(0, 2**32, (1, PERMUTATIONS), dtype=np.uint32), files, axis=0)
    boilerplate = changed(copies, 0.3, draw)
    return {"copies": copies, "variants": changed(copies, 0.1, draw), "boilerplate": boilerplate,
            "families": changed(np.repeat(boilerplate[::2], 2, axis=0)[:files], 0.05, draw)}


def pair_by_pair(signatures: np.ndarray) -> np.ndarray:
    """Return the clusters from a comparison of all pairs."""
    first = np.arange(len(signatures))
    for i, row in enumerate(signatures):
        alike = first[(signatures == row).mean(axis=1) >= NEAR_DUPLICATE_JACCARD]
        first[np.isin(first, alike)] = min(alike.min(), first[i])
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--compare", type=int, default=3000, help="with a comparison pair by pair")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    print(f"{machine()}; {', '.join(str(args.files * times) for times in (1, 2, 4))} files")
    made = [corpora(args.files * times) for times in (1, 2, 4)]
    for kind in made[0]:
        seconds = []
        for corpus in made:
            runs = []
            for _ in range(args.runs):
                started = time.perf_counter()
                clusters = cluster_near_duplicates(corpus[kind])
                runs.append(time.perf_counter() - started)
            seconds.append(median(runs))
        print(f"{kind}: {' / '.join(f'{s:.3f}' for s in seconds)} s; 4 times the files take "
              f"{seconds[2] / seconds[0]:.1f} times as long; {len(set(clusters.tolist()))} clusters of the "
              f"{len(clusters)}")
    for kind, signatures in corpora(min(args.files, args.compare)).items():
        started = time.perf_counter()
        expected = pair_by_pair(signatures)
        seconds = time.perf_counter() - started
        if (cluster_near_duplicates(signatures) != expected).any():
            sys.exit(f"{kind}: other clusters than a comparison pair by pair finds")
        print(f"{kind}, {len(signatures)} files, pair by pair: {seconds:.1f} s, the same clusters")


if __name__ == "__main__":
    main()
