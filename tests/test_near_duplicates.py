"""pipeline/data/near_duplicates.py: which files are near-duplicates, and what becomes of them."""
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_runs import Prepared

from pipeline.data import near_duplicates as module
from pipeline.data.clean_file import SPLITS
from pipeline.data.near_duplicates import (
    DUPLICATE,
    FEW_SETS,
    SAME_CONTENT,
    SAME_SPLIT,
    NearDuplicates,
    Rule,
    ShingleSets,
    near_duplicate_groups,
)

SETS = st.lists(st.sets(st.integers(0, 60), max_size=50), max_size=12)


def test_exact_duplicates_are_dropped(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """Copies of one file weigh more than other files, or are on both sides of a split."""
    header = "/* Copyright 2020 A */\n\n"
    data = prepare([*texts, header + texts[3], texts[5]])
    assert data.counts["dropped, exact duplicate"] == 2
    assert set().union(*data.lines.values()) == set(range(1, 41))


def variants(text: str, number: int) -> list[str]:
    """Return variants of a file that differ from it in one name."""
    return [text.replace("return", f"return /* {i} */", 1) for i in range(number)]


def test_near_duplicates_are_dropped(prepare: Callable[..., Prepared], texts: list[str],
                                     kotlin_file: Callable[[int], str]) -> None:
    """Variants of one file are on both sides of a split."""
    group = variants(kotlin_file(77), 8)
    data = prepare([*texts, *group])
    assert data.counts["dropped, near-duplicate"] == 7
    assert len(set().union(*data.lines.values()) - set(range(1, 41))) == 1


def test_kept_near_duplicates_never_straddle(prepare: Callable[..., Prepared], texts: list[str],
                                             kotlin_file: Callable[[int], str]) -> None:
    """--near_duplicates keep puts variants of one file into train and test."""
    families = [variants(kotlin_file(number), 6) for number in range(70, 76)]
    data = prepare([*texts, *(text for family in families for text in [*family, family[0]])],
                   "--near_duplicates", "keep")
    assert data.counts["dropped, exact duplicate"] == 6
    homes = []
    for number in range(6):
        lines = set(range(41 + 7 * number, 48 + 7 * number))
        holders = [split for split in SPLITS if data.lines[split] & lines]
        assert len(holders) == 1, f"family {number} is in {holders}"
        assert len(data.lines[holders[0]] & lines) == 6
        homes += holders
    assert len(set(homes)) > 1  # else this test would show nothing


def shingles(numbers: object) -> np.ndarray:
    """Return a set of shingles as sorted hashes, which are spread as hashes are."""
    hashes = np.array(list(numbers), dtype=np.uint64) * np.uint64(0x9E3779B1) & np.uint64(2**32 - 1)
    return np.sort(hashes.astype(np.uint32))


def sets_of(found: list, path: Path | None) -> ShingleSets:
    """Return the sets, on disk where there is a path."""
    sets = ShingleSets(path)
    for numbers in found:
        sets.add(shingles(numbers))
    return sets


def linked(one: set[int], other: set[int], rule: Rule) -> bool:
    """Return whether two sets are linked, by the definition."""
    common, smaller = len(one & other), min(len(one), len(other))
    return common > 0 and (common >= rule.jaccard * len(one | other)
                           or (rule.containment is not None and smaller >= rule.fewest
                               and common >= rule.containment * smaller))


def groups_pair_by_pair(sets: list[set[int]], rule: Rule) -> list[int]:
    """Return the first set of each set's group: what links connect."""
    first = list(range(len(sets)))
    for i, one in enumerate(sets):
        for j in range(i):
            if linked(one, sets[j], rule):
                low, high = sorted((first[i], first[j]))
                first = [low if group == high else group for group in first]
    return first


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("size", [60, 300, 3000])
def test_made_pairs_are_decided_at_the_threshold(size: int, on_disk: bool, tmp_path: Path) -> None:
    """Of 112 pairs with a Jaccard index between 0.65 and 0.75, 30 were decided wrongly."""
    draw, sets, expected = random.Random(size), [], []
    for percent in range(60, 81):
        for _ in range(4):
            common = round(2 * size * percent / (100 + percent))
            numbers = draw.sample(range(10**9), 2 * size - common)
            sets += [set(numbers[:size]), set(numbers[size - common:])]
            expected.append(common >= 0.7 * (2 * size - common))
    groups = near_duplicate_groups(sets_of(sets, tmp_path / "sets" if on_disk else None), DUPLICATE)
    assert [groups[2 * i] == groups[2 * i + 1] for i in range(len(expected))] == expected
    assert len(set(groups.tolist())) == len(sets) - sum(expected)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("larger", [700, 5000, 40000])
def test_contained_files_are_decided_at_the_threshold(larger: int, on_disk: bool, tmp_path: Path) -> None:
    """A file that was pasted into another is on the other side of the split."""
    draw, sets, expected = random.Random(larger), [], []
    for percent in range(60, 81):
        common = 2 * percent
        numbers = draw.sample(range(10**9), 200 + larger - common)
        sets += [set(numbers[:200]), set(numbers[200 - common:])]
        expected.append(percent >= 70)
    groups = near_duplicate_groups(sets_of(sets, tmp_path / "sets" if on_disk else None), SAME_SPLIT)
    assert [groups[2 * i] == groups[2 * i + 1] for i in range(len(expected))] == expected


@settings(max_examples=100, deadline=None)
@given(SETS, st.sampled_from([DUPLICATE, SAME_SPLIT, SAME_CONTENT]), st.randoms())
def test_groups_are_what_links_connect(found: list[set[int]], rule: Rule, draw: random.Random) -> None:
    """Files that are no near-duplicates are dropped, or near-duplicates are on both sides of a split, or that
    depends on the order of the files."""
    assert near_duplicate_groups(sets_of(found, None), rule).tolist() == groups_pair_by_pair(found, rule)
    draw.shuffle(found)
    assert near_duplicate_groups(sets_of(found, None), rule).tolist() == groups_pair_by_pair(found, rule)


@settings(max_examples=60, deadline=None)
@given(SETS, st.sets(st.integers(0, 60), min_size=1, max_size=50))
def test_a_file_of_another_split_is_linked_likewise(sets: list[set[int]], outside: set[int]) -> None:
    """A test file's near-duplicate in train is shown to the model that is evaluated on the test file."""
    index = NearDuplicates(map(shingles, sets))
    expected = {int(index.groups[i]) for i, found in enumerate(sets) if linked(found, outside, SAME_CONTENT)}
    assert set(index.near(shingles(outside)).tolist()) == expected


@pytest.mark.parametrize("sets", [[], [[]], [[], []], [[], [1]]])
def test_files_without_words(sets: list[list[int]]) -> None:
    """A data set with empty files, or none, ends in a traceback."""
    index = NearDuplicates(map(shingles, sets))
    assert index.groups.tolist() == list(range(len(sets)))
    assert index.near(shingles([])).tolist() == []


def test_a_few_words_do_not_make_a_near_duplicate() -> None:
    """A file of one line that stands in many others joins them all to one group, in which nothing can be
    found."""
    draw = random.Random(1)
    small = set(range(SAME_CONTENT.fewest - 1))
    files = [small, *(small | set(draw.sample(range(10**6), 200)) for _ in range(5))]
    assert NearDuplicates(map(shingles, files)).groups.tolist() == list(range(6))


def made(number: int, size: int, common: float, own: float, draw: random.Random) -> list[set[int]]:
    """Return groups of `size` sets of 200: a share is common to all sets, another of each its own."""
    numbers = iter(range(100, 10**9))
    everywhere = [next(numbers) for _ in range(int(200 * common))]
    sets = []
    for i in range(number):
        if i % size == 0:
            of_group = [next(numbers) for _ in range(200 - len(everywhere))]
        kept = draw.sample(of_group, len(of_group) - int(200 * own))
        sets.append({*everywhere, *kept, *(next(numbers) for _ in range(int(200 * own)))})
    return sets


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize(("size", "own"), [(2, 0.03), (20, 0.06), (1, 0.0), (600, 0.06)])
def test_groups_are_found_beneath_boilerplate(size: int, own: float, on_disk: bool, tmp_path: Path) -> None:
    """Files with the same boilerplate share most shingles, and near-duplicates among them are no longer
    found, or found in one order of the files alone."""
    draw = random.Random(0)
    sets = made(600, size, 0.6, own, draw)
    assert FEW_SETS < 600
    groups = near_duplicate_groups(sets_of(sets, tmp_path / "a" if on_disk else None), DUPLICATE)
    assert groups.tolist() == [i // size * size for i in range(600)]
    order = draw.sample(range(600), 600)
    groups = near_duplicate_groups(sets_of([sets[i] for i in order], tmp_path / "b" if on_disk else None),
                                   DUPLICATE)
    assert len(set(groups.tolist())) == 600 // size
    assert all(order[first] // size == i // size for first, i in zip(groups.tolist(), order, strict=True))


@pytest.mark.parametrize("kind", ["copies", "variants", "boilerplate", "header"])
def test_the_work_of_a_file_does_not_grow_with_their_number(kind: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A code base with thousands of copies or variants of one file, or of files with one licence header,
    takes hours."""
    compared, pairs, work = [], [], []
    shared, pairs_of = ShingleSets.shared, module._Postings.pairs_of

    def counted(*arguments: int) -> np.ndarray:
        pairs.append(found := pairs_of(*arguments))
        return found

    monkeypatch.setattr(ShingleSets, "shared", lambda *a: compared.append(a) or shared(*a))
    monkeypatch.setattr(module._Postings, "pairs_of", counted)
    for number in (500, 1000, 2000):
        compared.clear()
        pairs.clear()
        common, own, size = {"copies": (0, 0, number), "variants": (0, 0.06, number),
                             "boilerplate": (0.6, 0, 1), "header": (0.1, 0, 1)}[kind]
        groups = near_duplicate_groups(sets_of(made(number, size, common, own, random.Random(0)), None),
                                       DUPLICATE)
        assert len(set(groups.tolist())) == number // size
        work.append((len(compared) / number, sum(map(len, pairs)) / number))
    for kind_of_work in zip(*work, strict=True):
        assert kind_of_work[2] <= 1.2 * kind_of_work[1] + 0.1 <= 1.5 * kind_of_work[0] + 0.3
