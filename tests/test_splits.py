"""pipeline/preparation/splits.py: which file is in which split."""
import hashlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparation_runs import Prepared

from pipeline.data.clean_file import SPLITS
from pipeline.preparation.splits import choose_split


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


def test_a_test_has_a_size(prepare: Callable[..., Prepared], kotlin_file: Callable[[int], str],
                           capfd: pytest.CaptureFixture) -> None:
    """With one file in a hundred, a test of 80 files is one file, and every interval is that of it."""
    texts = [kotlin_file(number, 3) for number in range(80)]
    options = ("--test_fraction", 0.01, "--validation_fraction", 0.01)
    small = prepare(texts, *options, "--test_fraction", 0.05)
    counts = {split: len(small.lines[split]) for split in SPLITS}
    assert counts["test"] < 10
    capfd.readouterr()
    sized = prepare(texts, *options, "--min_test_examples", 30, output="sized")
    assert len(sized.rows["test"]) >= 30
    assert 10 <= len(sized.lines["test"]) <= 16
    assert 1 <= len(sized.lines["validation"]) <= 8
    assert "note: the test has" not in capfd.readouterr().err
    assert small.lines["test"] <= sized.lines["test"] | sized.lines["validation"]  # by the same hash
    # where the corpus cannot give it, a fifth of it, and what that can tell
    whole = prepare(texts, *options, "--min_test_examples", 5000, output="whole")
    assert len(whole.lines["test"]) == 16
    assert "where 5,000 of 10 are wanted" in capfd.readouterr().err
    assert "where 5,000 of 10 are wanted" in (whole.folder / "report.md").read_text()


def test_a_test_of_one_file_is_refused(prepare: Callable[..., Prepared], kotlin_file: Callable[[int], str],
                                       capfd: pytest.CaptureFixture) -> None:
    """A comparison on one file is believed of all files."""
    texts = [kotlin_file(number) for number in range(3)]
    with pytest.raises(SystemExit):
        prepare(texts, "--min_test_examples", 200)
    assert "too small for three splits" in capfd.readouterr().err
    texts += [kotlin_file(number) for number in range(3, 6)]
    assert len(prepare(texts, "--min_test_examples", 200, output="six").lines["test"]) == 2


def test_renamed_copies_are_on_one_side(prepare: Callable[..., Prepared],
                                        kotlin_file: Callable[[int], str]) -> None:
    """Of 26 pairs of files between Jaccard 0.5 and 0.7 on both sides, 24 were renamed copies."""
    families = []
    for number in range(40):
        lines = kotlin_file(number, 12).splitlines()
        half = "\n".join(lines[:len(lines) * 6 // 10]) + "\n"
        families.append((kotlin_file(number, 12), half + kotlin_file(1000 + number, 4), half))
    data = prepare([text for family in families for text in family])
    homes = {line: split for split in SPLITS for line in data.lines[split]}
    assert len(homes) > 100  # they are no duplicates, and stay
    together = [len({homes[line] for line in range(3 * i + 1, 3 * i + 4) if line in homes}) == 1
                for i in range(40)]
    assert sum(together) >= 38
    assert len({homes[3 * i + 1] for i in range(40)}) == 3


def test_a_large_family_teaches(prepare: Callable[..., Prepared], texts: list[str],
                                kotlin_file: Callable[[int], str]) -> None:
    """The test is a family of files much like one another, and the rest of the code is not measured."""
    common = kotlin_file(500, 20)
    family = [common + kotlin_file(600 + number, 6) for number in range(30)]
    data = prepare([*family, *texts])
    assert sum(line <= 30 for line in data.lines["train"]) > 10
    assert not any(line <= 30 for split in ("validation", "test") for line in data.lines[split])


def test_a_file_that_is_most_of_the_test_is_sampled(prepare: Callable[..., Prepared],
                                                    kotlin_file: Callable[[int], str]) -> None:
    """Half of the test's examples are from one file in seven of ten corpora."""
    candidates = (kotlin_file(2000 + number, 120) for number in range(100))
    large = next(text for text in candidates
                 if choose_split(hashlib.sha256(text.encode()).digest(), 0, 0.25, 0.25) == "test")
    data = prepare([large, *(kotlin_file(number, 3) for number in range(60))])
    rows = [row for row in data.rows["test"] if row[2] == 1]
    assert 0 < len(rows) <= 0.2 * len(data.rows["test"]) + 1
    assert data.counts["files cut to what one may give"] == 1
    assert data.manifest["leakage"]["this data set"]["all"]["completions"] == len(data.rows["test"])
    assert [line["path"] for line in data.dropped] == [None]
    assert data.dropped[0]["reason"].startswith(f"cut: gives {len(rows)} examples of ")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 5), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_test_set_holds_the_smaller(digest: bytes, seed: int, validation: float,
                                             test: float) -> None:
    """Changing --test_fraction shuffles the whole test set."""
    if choose_split(digest, seed, validation, test) == "test":
        assert choose_split(digest, seed, validation, test + 0.1) == "test"
