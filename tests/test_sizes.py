"""pipeline/preparation/splits.py: how much one file gives to a split, and what is said of a small test."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.preparation.splits import FEWEST_BOUNDED, cap_of, most_held_out, size_notes, smallest_difference


@pytest.mark.parametrize(("counts", "cap"), [
    ([], 1), ([7], 7), ([1000, 1, 1], 1000),  # too few to share
    ([10] * 10, 10), ([20] + [10] * 9, 20),
    ([500] + [10] * 10, 25),  # 25 of 125
    ([500, 400] + [30] * 10, 100),  # each 100 of 500
    ([100, 100, 100, 100, 1], 100),  # equal shares are not more than twice one's part
    ([18, 17, 15, 13, 10, 6], 18),  # a third of six files
    ([1000] + [20] * 7, 46),  # a quarter of 186
])
def test_one_file_gives_a_fifth_at_most(counts: list[int], cap: int) -> None:
    """Half of a test is one file; or a small test loses most of its examples to the rule."""
    assert cap_of(counts) == cap


@given(st.lists(st.integers(0, 3000), min_size=10, max_size=60))
def test_what_is_cut_is_no_more_than_it_takes(counts: list[int]) -> None:
    """A file gives more than a fifth, or files that give little are cut too."""
    cap = cap_of(counts)
    kept = [min(count, cap) for count in counts]
    assert max(kept) <= 0.2 * sum(kept) + 1 or cap == max(1, sorted(counts, reverse=True)[len(counts) // 2])
    if max(counts) <= 0.2 * sum(counts):
        assert kept == counts
    assert len(counts) >= FEWEST_BOUNDED
    assert sum(count > cap for count in counts) <= len(counts) / 2


def test_what_a_test_can_tell() -> None:
    """A user believes a difference that such a test cannot show, or is warned of a large test."""
    assert smallest_difference(196) == pytest.approx(2.8)
    assert size_notes(10, 200, 200) == size_notes(80, 666, 200) == []
    (few,) = size_notes(3, 66, 200)
    assert "66 examples of 3 files, where 200 of 10 are wanted" in few
    assert "under about 5 points" in few
    assert "no difference can be significant (over 3 files, p is 0.25 at least)" in few
    assert "collect more files" in few
    (small,) = size_notes(12, 90, 200)
    assert "significant" not in small
    assert "where 10 files are wanted" in size_notes(6, 79, 0)[0]


@pytest.mark.parametrize(("split", "files", "fraction", "most"), [
    ("test", 4, 0.01, 2), ("test", 60, 0.01, 12), ("test", 60, 0.5, 30), ("validation", 4, 0.01, 1),
    ("validation", 60, 0.01, 6)])
def test_a_small_corpus_keeps_something_to_train_on(split: str, files: int, fraction: float,
                                                     most: int) -> None:
    """The held-out splits take everything."""
    assert most_held_out(split, files, fraction) == most
