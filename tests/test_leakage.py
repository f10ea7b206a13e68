"""pipeline/preparation/leakage.py: which completions of the test split count as known from train."""
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.data.clean_file import CleanFile
from pipeline.preparation.cutting import Choice
from pipeline.preparation.leakage import measure_leakage


def a_file(line: int, words: list[int], text: str) -> CleanFile:
    """Return a file of the tokens `words`, a character of `text` each, whose second half is a completion."""
    assert len(words) == len(text)
    half = len(words) // 2
    windows = np.array([[0, half, len(words), 0, half, len(words)]])
    return CleanFile(line, None, digest=b"%d" % line, text=text, train_windows=windows, eval_windows=windows,
                     token_ids=np.array(words, dtype=np.uint16))


def leakage_of(files: list[CleanFile], splits: list[str | None], keep_trivial: bool = True) -> dict:
    def read() -> Iterator[CleanFile]:
        return iter(files)

    return measure_leakage(read, {"way": (splits, Choice(True, keep_trivial))})["way"]["all"]


def test_a_copied_completion_is_reported() -> None:
    """A test completion that stands in train goes unnoticed."""
    text = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
    words = list(range(len(text)))
    original, copy = a_file(1, words, text), a_file(2, words, text)
    found = leakage_of([original, copy], ["train", "test"])
    assert found == {"completions": 1, "verbatim_in_train": 1.0, "any_13_gram_in_train": 1.0,
                     "mean_share_of_13_grams_in_train": 1.0}


def test_a_foreign_completion_is_not_reported() -> None:
    """Clean data is called contaminated."""
    first = a_file(1, list(range(40)), "a" * 40)
    second = a_file(2, list(range(100, 140)), "b" * 40)
    assert leakage_of([first, second], ["train", "test"])["any_13_gram_in_train"] == 0
    assert leakage_of([first, second], ["train", "test"])["verbatim_in_train"] == 0


def test_a_shared_run_is_counted_but_is_not_verbatim() -> None:
    """A run of 13 tokens in common is missed, or taken for a copy of the whole."""
    train = a_file(1, [*range(500, 520), *range(13), *range(600, 607)], "t" * 40)
    test = a_file(2, [*range(700, 720), *range(13), *range(800, 807)], "u" * 40)
    found = leakage_of([train, test], ["train", "test"])
    assert (found["verbatim_in_train"], found["any_13_gram_in_train"]) == (0.0, 1.0)
    # 20 tokens hold 8 runs of 13
    assert found["mean_share_of_13_grams_in_train"] == pytest.approx(1 / 8, abs=1e-4)


def test_dropped_and_validation_files_are_not_train() -> None:
    """A copy that was dropped, or is in validation, is reported as leakage."""
    words = list(range(40))
    files = [a_file(1, words, "a" * 40), a_file(2, words, "a" * 40), a_file(3, words, "a" * 40)]
    assert leakage_of(files, ["validation", None, "test"])["verbatim_in_train"] == 0


def test_short_completions_are_searched_too() -> None:
    """A completion of fewer than 13 tokens is never found."""
    files = [a_file(1, list(range(10)), "zabcdefghi"), a_file(2, list(range(6)), "xyzdef")]
    assert leakage_of(files, ["train", "test"])["verbatim_in_train"] == 1


def test_only_what_is_in_the_test_split_is_looked_for() -> None:
    """The report counts imports that stand in train, although no test example asks for them."""
    text = "val a = b + c\n" + "import a.b.C\n\n"
    files = [a_file(1, list(range(len(text))), text), a_file(2, list(range(len(text))), text)]
    for keep_trivial in (False, True):
        assert leakage_of(files, ["train", "test"], keep_trivial)["completions"] == keep_trivial
