"""pipeline/training/reporting.py: the dry run, the report, and what is said at the end."""
from pathlib import Path

import pytest
import tiny_models
from markdown_it import MarkdownIt
from training_runs import command, with_validation_losses

import train
from pipeline.training.reporting import report_text

pytestmark = pytest.mark.usefixtures("one_thread")


def test_dry_run_shows_and_writes_nothing(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                          capsys: pytest.CaptureFixture) -> None:
    """A dry run trains, leaves files behind, or hides what the loss is taken on."""
    settings = ("--dry_run", "--tokens_per_batch", 120)
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", *settings))
    shown = capsys.readouterr().out
    prompt, _, completion = shown.partition("--- and ")
    assert "fun " in prompt
    assert "return" not in prompt.partition("one example")[2]
    for words in ("return", tiny_models.END_OF_TEXT, "(rows, tokens): ("):
        assert words in completion
    assert "% of what is computed are real tokens" in prompt
    assert "; about " in prompt
    assert {p.name for p in tmp_path.iterdir()} == {".adapter.lock"}


def test_report_shows_completions_before_and_after(model_folder: Path, dataset_folder: Path,
                                                   tmp_path: Path) -> None:
    """The report is missing, or a completion with backticks breaks out of its block."""
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    report = (tmp_path / "adapter" / "report.md").read_text()
    assert report.count("**before**") == report.count("**after**") == 3
    assert "training_curve.png" in report
    samples = [{"prompt": "a", "reference": "b", "before": "````\n", "after": "c"}]
    text = report_text({"steps": 1}, [], samples)
    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]
    assert blocks == ["a\n", "b\n", "````\n\n", "c\n"]


def test_training_that_does_not_help_says_so(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture) -> None:
    """A useless adapter is announced like a good one."""
    with_validation_losses(monkeypatch, [2.0, 2.5])
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    assert "WARNING: training did not lower the validation loss" in capsys.readouterr().err
