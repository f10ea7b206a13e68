"""evaluation/benchmark_report.py: the table, what belongs below it, and the examples that are shown."""
import re
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import WORDS, task_of

from pipeline.evaluation.baselines import against_baselines
from pipeline.evaluation.benchmark_report import (
    baseline_table,
    examples_to_show,
    make_notes,
    make_table,
    report,
    shown_scores,
)
from pipeline.scoring.scores import (
    ENDED,
    JUDGED,
    LENGTH,
    LOSS,
    LOSS_BYTE,
    NEXT_LINE,
    NEXT_LINE_SIMILARITY,
    PARSES,
    SHOWN,
    Scores,
)

SETS = ("CodeXGLUE (Python)", "Python stand-in", "Kotlin", "Kotlin, 512 tokens of context")


def test_table_fits_a_terminal_of_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The table is folded by the terminal, and cannot be read."""
    cell = {"base": 37.53, "base_interval": [33.61, 42.53], "fine_tuned": 12.34,
            "fine_tuned_interval": [10.01, 14.99], "difference": -25.19,
            "difference_interval": [-30.12, -20.45], "p": 0.0005}
    trivial = {"value": 37.53, "interval": [33.61, 42.53]}
    gained = {"scores": dict.fromkeys(JUDGED[:-1], trivial), "base": {}, "fine_tuned": {}}
    entry = {"examples": 20000, "signature": "s", "scores": dict.fromkeys(Scores.NAMES, cell),
             "reference_ended": 12.34,
             "baselines": dict.fromkeys(("nothing", "most similar training completion"), gained)}
    metrics = {"base_model": "b", "fine_tuned": "t", "sets": dict.fromkeys(SETS, entry)}
    report(metrics, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    table = lines[:next(i for i, line in enumerate(lines) if line.startswith("base: b"))]
    assert sum("37.53 [33.61, 42.53]" in line and "-25.19 [-30.12, -20.45]" in line
               for line in table) == 8 * len(SETS)
    assert sum("most similar training completion 37.53 [33.61, 42.53]" in line
               for line in table) == len(SETS)
    assert max(map(len, table)) <= 100
    assert any("forgot some Python" in line for line in lines)
    assert all(any(line.startswith(f"{name}: 12.3 % of the references end there") for line in lines)
               for name in SETS)
    written = (tmp_path / "table.md").read_text()
    assert "| Kotlin, n=20000 | BLEU | 37.53 [33.61, 42.53] |" in written
    assert f"| Kotlin, 512 tokens of context, n=20000 | {ENDED} | 37.53 [33.61, 42.53] |" in written
    assert list(baseline_table(metrics, JUDGED).columns[2:]) == [*JUDGED[:-1]]


def test_where_nobody_knows_which_references_end_none_are_said_to(tmp_path: Path) -> None:
    """A data set without whole files is said to have no reference that ends there, and a model that ends none
    passes for perfect."""
    metrics = {"base_model": "b", "fine_tuned": "t",
               "sets": {"Kotlin": {"examples": 9, "signature": "s", "scores": {}}}}
    assert not [note for note in make_notes(metrics) if "of the references end there" in note]


def test_the_next_line_comes_first_and_the_loss_a_byte_stands_in() -> None:
    """What an editor shows is far down in the table; or two models with two tokenizers have no loss at
    all."""
    cell = {"base": 1.0, "fine_tuned": 2.0, "difference": 1.0, "p": 1.0, "base_interval": [1.0, 1.0],
            "fine_tuned_interval": [2.0, 2.0], "difference_interval": [1.0, 1.0]}
    whole = dict.fromkeys(Scores.NAMES, cell)
    assert shown_scores(whole) == [*SHOWN]
    assert SHOWN[:2] == Scores.NAMES[:2] == (NEXT_LINE, NEXT_LINE_SIMILARITY)
    apart = {score: whole[score] for score in whole if score not in (LOSS, LENGTH)}
    assert shown_scores(apart) == [LOSS_BYTE if score == LOSS else score for score in SHOWN]
    metrics = {"sets": {"Kotlin": {"examples": 1, "scores": apart}}}
    assert list(make_table(metrics, Scores.NAMES)["score"]) == [s for s in Scores.NAMES if s in apart]


def test_a_model_that_does_not_beat_a_baseline_is_marked() -> None:
    """A model that is no better than copying its prompt passes for a good one, or a good one for a bad
    one."""
    task, copied = task_of(WORDS, prompts=WORDS), list(WORDS)
    texts = [score for score in JUDGED if score not in (PARSES, LOSS)]  # scores of texts alone
    good, bad = Scores(task, [f"{word} z" for word in WORDS]), Scores(task, ["q"] * 60)
    baselines = against_baselines(task_of(WORDS, prompts=["zz"] * 60), [bad, good], None, 0)
    assert baselines["nothing"]["scores"]["edit similarity"]["value"] == 0
    metrics = {"base_model": "b", "fine_tuned": "t",
               "sets": {"Kotlin": {"examples": 60, "signature": "s", "scores": {}, "baselines": baselines}}}
    marked = [note for note in make_notes(metrics) if note.startswith("NOT BETTER")]
    told = re.compile(r'the (.*) on Kotlin does not significantly beat "(.*?)" in (.*)')
    assert [told.findall(note)[0] for note in marked] == [
        ("base model", "nothing", f"{NEXT_LINE}, {NEXT_LINE_SIMILARITY}, edit similarity, chrF"),
        ("base model", "the line before", ", ".join(texts)),
        ("base model", "the prompt's last 1 line", ", ".join(texts)),
        ("fine-tuned model", "nothing", NEXT_LINE), ("fine-tuned model", "the line before", NEXT_LINE),
        ("fine-tuned model", "the prompt's last 1 line", NEXT_LINE)]
    metrics["sets"]["Kotlin"]["baselines"] = against_baselines(task, [Scores(task, copied), good], None, 0)
    assert ("NOT BETTER: the fine-tuned model on Kotlin does not significantly beat \"the prompt's last 1 "
            f"line\" in {', '.join(texts)}") in make_notes(metrics)
    assert any("no train split" in note for note in make_notes(metrics))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("difference", "p", "score", "worse"), [
    (0.5, 0.001, LOSS, True), (-0.5, 0.001, LOSS, False), (-0.5, 0.001, "BLEU", True),
    (0.5, 0.001, "BLEU", False), (0.5, 0.001, LOSS_BYTE, True), (-0.5, 0.001, LOSS_BYTE, False),
    (-0.5, 0.001, NEXT_LINE, True), (-0.5, 0.06, NEXT_LINE, False), (-0.5, 0.001, ENDED, False)])
def test_a_score_that_became_worse_is_a_warning(difference: float, p: float, score: str, worse: bool,
                                                name: str) -> None:
    """A higher loss passes for a gain, or a lower one for a loss; or what was lost on Kotlin is not told."""
    metrics = {"base_model": "b", "fine_tuned": "t", "sets": {name: {
        "examples": 9, "signature": "s", "scores": {score: {"difference": difference, "p": p}}}}}
    python = ": the model forgot some Python" if "Python" in name else ""
    warning = f"WARNING: {score} on {name} became significantly worse{python}"
    assert [note for note in make_notes(metrics) if "WARNING" in note] == [warning] * worse


@pytest.mark.parametrize(("change", "gains", "losses"), [
    ([0.0, 5, -5, 9, -9, 1, -1, 2, -2, 0, 0, 3], [3, 1, 11], [4, 2, 8]), ([0.0] * 12, [], []),
    ([1.0, 2, -1], [1, 0], [2]), ([4.0], [0], [])])
def test_ten_examples_are_shown(change: list[float], gains: list[int], losses: list[int]) -> None:
    """The report shows an example twice, calls a loss a gain, or hides the largest losses."""
    found = examples_to_show(np.array(change), 0)
    assert (found["largest gains"], found["largest losses"]) == (gains, losses)
    shown = [i for chosen in found.values() for i in chosen]
    assert len(shown) == len(set(shown)) == min(10, len(change))
    assert found == examples_to_show(np.array(change), 0)
