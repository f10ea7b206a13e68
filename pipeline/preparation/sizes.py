"""How large a split is: how much is held out at most, what one file gives to it, and what a test can tell."""
from collections.abc import Iterable

LEAST_FILES = 10  # of which a test, or a validation, is made where the corpus has them
# What is held out at most to reach that: in a small corpus, what is left has to teach something.
MOST_HELD_OUT = {"test": 0.2, "validation": 0.1}
MOST_OF_ONE_FILE, FEWEST_BOUNDED = 0.2, 5  # of a split's examples; files of a split that is bounded so
# Standard deviation of the difference of two models' edit similarity on one example, in points.  In
# docs/results.md the interval of -0.85 on 200 examples of Kotlin is 3.8 wide: 3.8 / (2 * 1.96) * sqrt(200).
DIFFERENCE_DEVIATION = 14.0
# Differences of this many standard errors are found significant at 0.05 in four of five tests: 1.96 + 0.84.
DETECTED = 2.8


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
