"""Which split a file belongs to, and which files are dropped as copies of others."""
import argparse
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from pipeline.data.near_duplicates import DUPLICATE, FEW_SETS, SAME_SPLIT, ShingleSets, near_duplicate_groups

LEAST_FILES = 10  # of which a test, or a validation, is made where the corpus has them
# What is held out at most to reach that: in a small corpus, what is left has to teach something.
MOST_HELD_OUT = {"test": 0.2, "validation": 0.1}
MOST_COMPARED = 8  # files of an earlier data set, when the one most like a file is looked for
MOST_OF_ONE_FILE, FEWEST_BOUNDED = 0.2, 5  # of a split's examples; files of a split that is bounded so
# Standard deviation of the difference of two models' edit similarity on one example, in points.  In
# docs/results.md the interval of -0.85 on 200 examples of Kotlin is 3.8 wide: 3.8 / (2 * 1.96) * sqrt(200).
DIFFERENCE_DEVIATION = 14.0
# Differences of this many standard errors are found significant at 0.05 in four of five tests: 1.96 + 0.84.
DETECTED = 2.8


@dataclass
class Corpus:
    """What is kept in memory of the files that can serve: about 0.6 kB each, and half a byte per token."""
    shingles: ShingleSets  # of each file, then of the earlier ones of --keep_splits
    source_lines: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # SHA-256 of the cleaned text
    train_examples: list[int] = field(default_factory=list)
    # the split that a file keeps, by --keep_splits; then those of the earlier files
    sides: list[str | None] = field(default_factory=list)


@dataclass
class Plan:
    """What becomes of each file that can serve."""
    splits: list[str | None]  # None: it is dropped
    reasons: dict[int, str] = field(default_factory=dict)  # why, by the file's number
    kept_lines: dict[int, int] = field(default_factory=dict)  # which line of the raw file is kept instead
    caps: dict[str, int] = field(default_factory=dict)  # examples that one file gives to a split at most
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # files and examples of what is held out


def split_number(digest: bytes, seed: int) -> float:
    """Return the number from 0 to 1 that decides the split of a file, or of its near-duplicate group."""
    return int.from_bytes(hashlib.sha256(b"%d:" % seed + digest).digest()[:8]) / 2**64


def choose_split(digest: bytes, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """Return the split of a file from its content's hash and the seed alone."""
    number = split_number(digest, seed)
    if number < test_fraction:
        return "test"
    return "validation" if number < test_fraction + validation_fraction else "train"


def assign_splits(corpus: Corpus, args: argparse.Namespace,
                  examples_in: Callable[[int, str], int]) -> Plan:
    """Return what becomes of each file of the corpus.

    Of a cluster of near-duplicates one file is kept: with the smallest digest, whatever the order of the
    files; one that keeps its split goes before.  A near-duplicate group is in one split; its smallest digest
    and the seed decide in which, or, with --keep_splits, the files whose splits are known.
    `examples_in(file, split)`: how many examples a file gives to validation or test.
    """
    plan = Plan(splits=[None] * len(corpus.digests))
    kept = drop_duplicates(corpus, plan, args.near_duplicates == "drop")
    chosen = [*kept, *range(len(corpus.digests), len(corpus.shingles))]
    families: dict[int, list[int]] = {}
    groups = near_duplicate_groups(corpus.shingles, SAME_SPLIT, chosen).tolist()
    for i, first in zip(chosen, groups, strict=True):
        families.setdefault(first, []).append(i)
    sides = list(corpus.sides)
    for family in families.values():
        follow_sides(family, sides, corpus.shingles)
    for i in kept:
        plan.splits[i] = sides[i]
    # of those that are on no side yet: (number, files) of each family, in the order of the numbers
    free = []
    for family in families.values():
        members = sorted((i for i in family if sides[i] is None), key=lambda i: corpus.digests[i])
        if members:
            free.append((split_number(corpus.digests[members[0]], args.seed), members))
    free.sort()
    above = 0.0
    for split, fraction in (("test", args.test_fraction), ("validation", args.validation_fraction)):
        above += fraction
        taken = hold_out(split, fraction, above, free, plan, args.min_test_examples, examples_in)
        if taken:
            above = max(above, free[taken - 1][0])
        free = free[taken:]
    for i in kept:
        plan.splits[i] = plan.splits[i] or "train"
    counts = [corpus.train_examples[i] for i in kept if plan.splits[i] == "train"]
    plan.caps["train"] = min(args.max_examples_per_file or max(counts, default=1), cap_of(counts))
    return plan


def drop_duplicates(corpus: Corpus, plan: Plan, near: bool) -> list[int]:
    """Drop all but one of each cluster of near-duplicates (not `near`: of exact ones) in the plan; return
    those that are kept."""
    clusters = near_duplicate_groups(corpus.shingles, DUPLICATE, range(len(corpus.digests))).tolist()
    # Exact duplicates are in one cluster, and have equal digests: the first of them represents it.
    representative: dict[int, int] = {}

    def rank(i: int) -> tuple[bool, bytes]:
        return corpus.sides[i] is None, corpus.digests[i]

    for i, cluster in enumerate(clusters):
        if rank(i) < rank(representative.setdefault(cluster, i)):
            representative[cluster] = i
    kept: list[int] = []
    seen: dict[bytes, int] = {corpus.digests[i]: i for i in reversed(representative.values())}
    for i, cluster in enumerate(clusters):
        best = representative[cluster]
        first = seen.setdefault(corpus.digests[i], i)
        if first != i or (near and i != best):
            plan.reasons[i] = "exact duplicate" if first != i else "near-duplicate"
            plan.kept_lines[i] = corpus.source_lines[best if near else first]
        else:
            kept.append(i)
    return kept


def follow_sides(family: list[int], sides: list[str | None], shingles: ShingleSets) -> None:
    """Give the members of a family that are on no side yet that of the one among the others that is most
    like each, where there is one."""
    settled = [i for i in family if sides[i] is not None]
    if not settled or len(settled) == len(family):
        return
    following: dict[int, str | None] = {}
    kept = [shingles.kept_of(i) for i in settled]
    hashes = np.concatenate(kept)
    order = np.argsort(hashes, kind="stable")
    hashes, holders = hashes[order], np.repeat(np.arange(len(settled)), [len(found) for found in kept])[order]
    for i in family:
        if sides[i] is None:
            places = np.searchsorted(hashes, shingles.kept_of(i))[:, None] + np.arange(FEW_SETS)
            places = np.minimum(places, len(hashes) - 1)
            shared = holders[places][hashes[places] == shingles.kept_of(i)[:, None]]
            near, counts = np.unique(shared, return_counts=True)
            likely = [settled[j] for j in near[np.argsort(-counts, kind="stable")][:MOST_COMPARED].tolist()]
            following[i] = sides[max(likely or settled[:1], key=lambda j, i=i: jaccard(shingles, i, j))]
    for i, side in following.items():
        sides[i] = side


def jaccard(shingles: ShingleSets, i: int, j: int) -> float:
    """Return the Jaccard index of two sets."""
    common = shingles.shared(i, j)
    return common / max(1, shingles.sizes[i] + shingles.sizes[j] - common)


def hold_out(split: str, fraction: float, above: float, free: list[tuple[float, list[int]]], plan: Plan,
             wanted: int, examples_in: Callable[[int, str], int]) -> int:
    """Take families for a split, in their order: those with numbers below `above`, and as many more as it
    takes until it has `wanted` examples of LEAST_FILES files; 0: no more.  Return how many it looked at.

    A family that is most of the split is passed over: it measures little but itself.
    """
    files = len(plan.splits) - len(plan.reasons)
    counts = [examples_in(i, split) for i, found in enumerate(plan.splits) if found == split]
    most = most_held_out(split, files, fraction)
    largest = max(LEAST_FILES, fraction * files) / 2

    def size() -> int:
        cap = cap_of(counts)
        return sum(min(count, cap) for count in counts)

    looked_at = 0
    for number, family in free:
        enough = not wanted or len(counts) >= most or (len(counts) >= LEAST_FILES and size() >= wanted)
        if number >= above and enough:
            break
        looked_at += 1
        if len(family) <= largest:
            counts += [examples_in(i, split) for i in family]
            for i in family:
                plan.splits[i] = split
    plan.caps[split] = cap_of(counts)
    plan.sizes[split] = len(counts), size()
    return looked_at


def split_by_file(digests: list[bytes], plan: Plan, seed: int) -> list[str]:
    """Return what splitting file by file into splits of these sizes, and dropping nothing, would give: what
    leakage is compared with."""
    files = max(1, len(digests) - len(plan.reasons))
    shares = [plan.sizes[split][0] / files for split in ("validation", "test")]
    return [choose_split(digest + b"%d" % i, seed, *shares) for i, digest in enumerate(digests)]


def most_held_out(split: str, files: int, fraction: float) -> int:
    """Return of how many files a split may be made at most to reach its least size; `fraction`: its flag."""
    return max(2 if split == "test" else 1, int(max(MOST_HELD_OUT[split], fraction) * files))


def cap_of(counts: Iterable[int]) -> int:
    """Return how many examples a file may give so that none gives more than MOST_OF_ONE_FILE of all, nor,
    where there are few files, more than twice its part.

    `counts`: the examples of each file.  Of fewer than five files there is no bound; nor is it ever below
    what the middle file has.
    """
    counts = sorted(counts, reverse=True)
    most, files = counts[0] if counts else 0, len(counts)
    share = max(MOST_OF_ONE_FILE, 2 / max(1, files))
    if files < FEWEST_BOUNDED or most <= share * sum(counts):
        return max(1, most)
    rest, bound = sum(counts), 0.0
    for bounded, count in enumerate(counts, start=1):
        rest -= count
        # that many files at the bound, and the rest below it: bound = share * (bounded * bound + rest)
        bound = share * rest / (1 - share * bounded) if share * bounded < 1 else 0.0
        if bound >= counts[bounded] or share * (bounded + 1) >= 1:
            break
    return max(1, int(bound), counts[files // 2])


def smallest_difference(examples: int) -> float:
    """Return the difference of edit similarity, in points, that a test of so many examples finds in four of
    five cases (power 0.8 at 0.05, two-sided)."""
    return DETECTED * DIFFERENCE_DEVIATION / examples ** 0.5


def size_notes(files: int, examples: int, wanted: int) -> list[str]:
    """Return what there is to say of a test of so many files and examples, `wanted` being asked for."""
    if files >= LEAST_FILES and examples >= wanted:
        return []
    # a file is exchanged between the models as a whole: there are 2 ** files ways, and each has its mirror
    least_p = min(1.0, 2.0 ** (1 - files))
    least = f"{wanted:,} of {LEAST_FILES}" if wanted else f"{LEAST_FILES} files"
    unseen = smallest_difference(max(1, examples))
    text = (f"note: the test has {examples:,} examples of {files} files, where {least} are wanted: "
            f"differences of edit similarity under about {unseen:.0f} points will hardly show in it")
    if least_p > 0.05:
        text += f", and no difference can be significant (over {files} files, p is {least_p:.2g} at least)"
    return [text + "; collect more files, or more of them for the test (--test_fraction)"]
