"""pipeline/preparation/splits.py: which file is in which split."""
import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from preparation_runs import Prepared

from pipeline.preparation.splits import SPLITS, choose_split


def test_no_file_is_in_two_splits(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """Test completions stand verbatim in training prompts: every measured number is too good."""
    data = prepare(texts)
    assert sum(map(len, data.lines.values())) == len(set().union(*data.lines.values())) == 40


def test_splits_do_not_depend_on_the_order_or_the_run(prepare: Callable[..., Prepared],
                                                      texts: list[str]) -> None:
    """Sorting the input differently moves test files into train."""
    first = prepare(texts)
    again = prepare(texts, output="again")
    assert again.rows == first.rows
    assert again.manifest["data_hash"] == first.manifest["data_hash"]
    shuffled = random.Random(1).sample(texts, len(texts))
    other = prepare(shuffled, output="other")
    for split in SPLITS:
        assert sorted(other.examples[split]) == sorted(first.examples[split])
    assert other.rows != first.rows


def test_another_seed_gives_other_splits(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """--seed does nothing."""
    assert prepare(texts).lines != prepare(texts, "--seed", 1, output="other").lines


def test_adding_a_file_moves_no_other(prepare: Callable[..., Prepared], texts: list[str],
                                      kotlin_file: Callable[[int], str]) -> None:
    """A larger corpus trains on what was the test set of the smaller one."""
    before = prepare(texts)
    after = prepare([kotlin_file(500), *texts], output="after")
    for split in SPLITS:
        assert {line - 1 for line in after.lines[split]} - {0} == before.lines[split]


@given(st.binary(min_size=32, max_size=32), st.integers(0, 5), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_test_set_holds_the_smaller(digest: bytes, seed: int, validation: float,
                                             test: float) -> None:
    """Changing --test_fraction shuffles the whole test set."""
    if choose_split(digest, seed, validation, test) == "test":
        assert choose_split(digest, seed, validation, test + 0.1) == "test"
