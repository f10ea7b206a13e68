"""pipeline/training/reporting.py: the dry run, the report, and what is said at the end."""
import re
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
    settings = ("--dry_run", "--tokens_per_batch", 120, "--end_of_text", "always")
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


def test_dry_run_shows_a_sequence_of_a_file(model_folder: Path, files_folder: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture) -> None:
    """One cannot see that whole files are learned from, and on which of their tokens."""
    settings = ("--dry_run", "--tokens_per_batch", 600)
    train.main(command(model_folder, files_folder, tmp_path / "adapter", *settings))
    shown = capsys.readouterr().out
    assert "12 sequences of whole files, of at most 512 tokens" in shown
    assert re.search(r"one example: 1 tokens without a label\nf\w*\n--- and ", shown)
    labels = shown.partition("--- and ")[2]
    assert labels.count("return") >= 3  # the prompts' tokens are learned too
    assert tiny_models.END_OF_TEXT in labels


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


def test_report_has_the_losses_that_there_are() -> None:
    """A loss stands in another column, or without end of digits; or a run without files has none."""
    point = {"step": 0, "examples": 0, "validation_loss": 2.0}
    for more, row in (({}, "| 0 | 0 | 2.0000 |  |  |"),
                      ({"one_chunk_loss": 1 / 3}, "| 0 | 0 | 2.0000 | 0.3333 |  |"),
                      ({"replay_loss": 2 / 3}, "| 0 | 0 | 2.0000 |  | 0.6667 |")):
        curve = [point | more, {"step": 1, "train_loss": 2.0}]
        assert row in report_text({"steps": 1}, curve, []).splitlines()


def test_training_that_does_not_help_says_so(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture) -> None:
    """A useless adapter is announced like a good one."""
    with_validation_losses(monkeypatch, [2.0, 2.5])
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    assert "WARNING: training did not lower the validation loss" in capsys.readouterr().err
