"""pipeline/scoring/parsing.py: which predictions leave a file that still parses."""
from pathlib import Path
from types import SimpleNamespace

import pytest
from evaluation_runs import task_of, with_files

from pipeline.scoring import parsing
from pipeline.scoring.parsing import PrefixParser, parses
from pipeline.scoring.scores import PARSES, Scores, compare
from pipeline.tasks.completion_set import kotlin_task

BEFORE = "package a\n\nclass A {\n    fun f(x: Int): Int {\n        val y = "


@pytest.mark.parametrize(("before", "prediction", "ended", "parsed"), [
    (BEFORE, "x + 1\n        return y\n    }\n}\n", True, True),
    (BEFORE, "x + 1\n        return y\n    }\n\n    fun g(", False, True),  # cut by its budget
    (BEFORE, "x + 1\n        return y\n    }\n}\n}\n", True, False),
    (BEFORE, ") + 1", False, False),
    (BEFORE, "", True, True),
    (BEFORE, "g(x", False, True),
    (BEFORE, "g(x]", False, False),
    (BEFORE, "x\n    }\n\n    overr", False, True),  # within a word
    (BEFORE, "x\n    }\n\n    overr", True, False),
    (BEFORE, "\"abc", False, True), (BEFORE, "\"a ${b(\"c\") + ", False, True),
    (BEFORE, "\"\"\"a\n\" ", False, True),
    (BEFORE, "\"a\\", False, True), (BEFORE, "'", False, True), (BEFORE, "`a b", False, True),
    (BEFORE, "x // what ] follows", False, True), (BEFORE, "x /* what ] /* follows */", False, True),
    (BEFORE, "x /* what */ ] y + z", False, False),
    # the parser would never come back from a text that ends here
    (BEFORE, "x\n    }\n\n    val p = f()\n\n    @", False, True),
    ("val x = 1\n@", "Foo val y = 2\n", True, True),
    ("fun f() { val a = lis", "tOf(1, 2)\n}\n", True, True),  # a word on both sides of the cursor
    ("fun f() { va", "l a = 1 }\n", True, True),
    ("class A { ov", "en fun f() {}", True, False),
    # what is broken before is not held against it
    ("fun f() { g(] }\n\nfun h() { ", "return }\n", True, None),
    ("fun f() { g(] }\n\nfun h() { ", "return ] }\n", True, None),
    ("", "package é\n\nfun é() = \"ö\"\n", True, True), ("", "\nfun )", True, False),
])
def test_a_new_error_is_one_that_is_met_in_the_prediction(before: str, prediction: str, ended: bool,
                                                          parsed: bool | None) -> None:
    """A text that stops in the middle counts as broken, as every text of a fixed length does; or a broken one
    does not."""
    assert PrefixParser(".kt").begin(before).still_parses(prediction, ended) == parsed


def test_every_model_is_told_apart(folders: SimpleNamespace, tmp_path: Path) -> None:
    """The rate of one model is that of the other, of other examples, or has no test."""
    task = kotlin_task(str(with_files(folders, tmp_path / "data").data), 0, 0, 9)
    good = [example.completion for example in task.examples]
    broken = [") ] )" for _ in good]
    found = parses(task, [good, broken, good[:3] + broken[3:]], [[True] * len(good)] * 3)
    assert found == [[True] * 6, [False] * 6, [True] * 3 + [False] * 3]
    models = [Scores(task, good, parses=marks) for marks in found[:2]]
    cell = compare(*models, 0)[PARSES]
    assert (cell["base"], cell["fine_tuned"], cell["difference"]) == (100, 0, -100)
    assert 0 < cell["p"] < 1


def test_without_a_grammar_or_files_there_is_no_rate(folders: SimpleNamespace, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set without files, or in a language without a grammar, ends in a traceback or gets a rate of
    0."""
    task = task_of(["a", "b"])
    assert parses(task, [["x", "y"]], [[True, True]]) == [[None, None]]
    assert PARSES not in compare(*[Scores(task, ["x", "y"], parses=[None, None])] * 2, 0)
    task = kotlin_task(str(with_files(folders, tmp_path / "data").data), 0, 0, 9)
    monkeypatch.setattr(parsing, "find_grammar", lambda extension: None)
    assert parses(task, [[""] * 6], [[True] * 6]) == [[None] * 6]


def test_a_file_of_which_nothing_is_known_does_not_count() -> None:
    """One file that is too much for the parser takes the rate of the whole set away."""
    task = task_of(["a"] * 4)
    half, all_ = (Scores(task, ["x"] * 4, parses=marks)
                  for marks in ([True, False, None, None], [True, True, None, None]))
    cell = compare(half, all_, 0)[PARSES]
    assert (cell["base"], cell["fine_tuned"]) == (50, 100)
