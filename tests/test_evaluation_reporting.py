"""pipeline/evaluation/reporting.py: the table, what belongs below it, and the examples that are shown."""
import re
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import WORDS, task_of

from pipeline.evaluation.baselines import against_baselines
from pipeline.evaluation.reporting import examples_to_show, make_notes, report
from pipeline.evaluation.scores import LOSS, Scores


def test_table_fits_a_terminal_of_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The table is folded by the terminal, and cannot be read."""
    cell = {"base": 37.53, "base_interval": [33.61, 42.53], "fine_tuned": 12.34,
            "fine_tuned_interval": [10.01, 14.99], "difference": -25.19,
            "difference_interval": [-30.12, -20.45], "p": 0.0005}
    entry = {"examples": 20000, "signature": "s", "scores": dict.fromkeys(Scores.NAMES, cell)}
    metrics = {"base_model": "b", "fine_tuned": "t",
               "sets": dict.fromkeys(("CodeXGLUE (Python)", "Kotlin"), entry)}
    report(metrics, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    table = lines[:next(i for i, line in enumerate(lines) if line.startswith("base: b"))]
    assert sum("37.53 [33.61, 42.53]" in line and "-25.19 [-30.12, -20.45]" in line for line in table) == 8
    assert max(map(len, table)) <= 100
    assert any("forgot some Python" in line for line in lines)
    assert "| Kotlin, n=20000 | BLEU | 37.53 [33.61, 42.53] |" in (tmp_path / "table.md").read_text()


def test_a_model_that_does_not_beat_a_baseline_is_marked() -> None:
    """A model that is no better than copying its prompt passes for a good one, or a good one for a bad
    one."""
    task, copied = task_of(WORDS, prompts=WORDS), list(WORDS)
    good, bad = Scores(task, [f"{word} z" for word in WORDS]), Scores(task, ["q"] * 60)
    baselines = against_baselines(task_of(WORDS, prompts=["zz"] * 60), [bad, good], None, 0)
    assert baselines["nothing"]["scores"]["edit similarity"]["value"] == 0
    metrics = {"base_model": "b", "fine_tuned": "t",
               "sets": {"Kotlin": {"examples": 60, "signature": "s", "scores": {}, "baselines": baselines}}}
    marked = [note for note in make_notes(metrics) if note.startswith("NOT BETTER")]
    told = re.compile(r'the (.*) on Kotlin does not significantly beat "(.*?)" in (.*)')
    assert [told.findall(note)[0] for note in marked] == [
        ("base model", "nothing", "edit similarity, first line exact, %"),
        ("base model", "the prompt's last 1 line", "edit similarity, BLEU, first line exact, %"),
        ("fine-tuned model", "nothing", "first line exact, %"),
        ("fine-tuned model", "the prompt's last 1 line", "first line exact, %")]
    metrics["sets"]["Kotlin"]["baselines"] = against_baselines(task, [Scores(task, copied), good], None, 0)
    assert ("NOT BETTER: the fine-tuned model on Kotlin does not significantly beat \"the prompt's last 1 "
            "line\" in edit similarity, BLEU, first line exact, %") in make_notes(metrics)
    assert any("no train split" in note for note in make_notes(metrics))


@pytest.mark.parametrize(("difference", "score", "forgot"),
                         [(0.5, LOSS, True), (-0.5, LOSS, False), (-0.5, "BLEU", True), (0.5, "BLEU", False)])
def test_a_loss_on_python_is_a_warning(difference: float, score: str, forgot: bool) -> None:
    """A higher loss passes for a gain, or a lower one for a loss."""
    metrics = {"base_model": "b", "fine_tuned": "t", "sets": {"CodeXGLUE (Python)": {
        "examples": 9, "signature": "s", "scores": {score: {"difference": difference, "p": 0.001}}}}}
    assert any("forgot some Python" in note for note in make_notes(metrics)) == forgot


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
