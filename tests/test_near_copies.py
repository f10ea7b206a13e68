"""pipeline/data/near_copies.py: which files are copies of one another, near enough to give an answer away."""
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.near_copies import CONTAINMENT, FEW_FILES, FEWEST_CONTAINED, JACCARD, NearCopies

SETS = st.lists(st.sets(st.integers(0, 60), max_size=50), max_size=12)


def shingles(numbers: object) -> np.ndarray:
    """Return a file's shingles."""
    return np.array(sorted(numbers), dtype=np.uint32)


def linked(one: set[int], other: set[int]) -> bool:
    """Return whether two files are linked, by the definition."""
    common, smaller = len(one & other), min(len(one), len(other))
    return (common >= JACCARD * len(one | other)
            or (smaller >= FEWEST_CONTAINED and common >= CONTAINMENT * smaller))


@settings(max_examples=100, deadline=None)
@given(SETS)
def test_groups_are_what_links_connect(sets: list[set[int]]) -> None:
    """The copy of a file is shown to the model that is asked for it."""
    groups = NearCopies([shingles(found) for found in sets]).groups
    for i, one in enumerate(sets):
        for j, other in enumerate(sets[:i]):
            if one and other and linked(one, other):
                assert groups[i] == groups[j]
    for group in set(groups.tolist()):  # and nothing else: each has a link within its group
        members = np.flatnonzero(groups == group).tolist()
        assert group == members[0]
        for i in members[1:]:
            assert any(linked(sets[i], sets[j]) for j in members if j != i)


@settings(max_examples=60, deadline=None)
@given(SETS, st.sets(st.integers(0, 60), min_size=1, max_size=50))
def test_a_file_of_another_split_is_linked_likewise(sets: list[set[int]], outside: set[int]) -> None:
    """A test file's copy in train is shown to the model that is asked for the test file."""
    copies = NearCopies([shingles(found) for found in sets])
    expected = {int(copies.groups[i]) for i, found in enumerate(sets) if found and linked(found, outside)}
    assert set(copies.near(shingles(outside)).tolist()) == expected


def test_a_family_of_many_copies_is_one_group() -> None:
    """Of a template that a hundred files were made from, the one is shown for the other: every shingle of
    theirs is in too many files to compare them all."""
    draw = random.Random(0)
    template = draw.sample(range(10**6), 100)
    copies = [shingles({*draw.sample(template, 90), *draw.sample(range(10**6, 10**7), 10)})
              for _ in range(3 * FEW_FILES)]
    others = [shingles(draw.sample(range(10**7, 10**8), 100)) for _ in range(20)]
    groups = NearCopies([*copies, *others]).groups
    assert set(groups[:len(copies)].tolist()) == {0}
    assert groups[len(copies):].tolist() == list(range(len(copies), len(copies) + 20))


@pytest.mark.parametrize("sets", [[], [[]], [[], [1]]])
def test_files_without_words(sets: list[list[int]]) -> None:
    """A data set with empty files, or none, ends in a traceback."""
    copies = NearCopies([shingles(found) for found in sets])
    assert copies.groups.tolist() == list(range(len(sets)))
    assert copies.near(shingles([])).tolist() == []


def test_a_few_words_do_not_make_a_copy() -> None:
    """A file of one line that stands in many others joins them all to one group, in which nothing can be
    found."""
    draw = random.Random(1)
    small = set(range(FEWEST_CONTAINED - 1))
    files = [shingles(small), *(shingles(small | set(draw.sample(range(10**6), 200))) for _ in range(5))]
    assert NearCopies(files).groups.tolist() == list(range(6))
