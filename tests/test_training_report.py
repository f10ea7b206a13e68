"""pipeline/training/training_report.py: the dry run, the report, and what is said at the end."""
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from datasets import load_from_disk
from markdown_it import MarkdownIt
from training_runs import command, with_validation_losses

import train
from pipeline.run.manifests import check_manifest
from pipeline.training import training_report
from pipeline.training.training_report import report_text

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
    for more, row in (({}, "| 0 | 0 | 2.0000 |  |  |  |  |"),
                      ({"one_chunk_loss": 1 / 3}, "| 0 | 0 | 2.0000 | 0.3333 |  |  |  |"),
                      ({"replay_loss": 2 / 3}, "| 0 | 0 | 2.0000 |  |  | 0.6667 |  |"),
                      ({"infilling_loss": 1 / 3}, "| 0 | 0 | 2.0000 |  |  |  | 0.3333 |"),
                      ({"repository_loss": 1 / 3}, "| 0 | 0 | 2.0000 |  | 0.3333 |  |  |")):
        curve = [point | more, {"step": 1, "train_loss": 2.0}]
        assert row in report_text({"steps": 1}, curve, []).splitlines()


def outputs_of(folder: Path) -> set[str]:
    """Return the files that a run's manifest names, after comparing them with it; there must be no other."""
    named = set(check_manifest(folder)["outputs"])
    assert named == {path.name for path in folder.iterdir()} - {"manifest.json"}
    return named


@pytest.mark.parametrize(("part", "lost"), [
    ("complete_samples", set()), ("draw_curve", {"training_curve.png"}), ("report_text", {"report.md"}),
    ("hash_files", {"training_curve.jsonl", "training_curve.png", "report.md"})])
def test_what_fails_behind_the_training_is_one_line_and_the_adapter_stays(
        part: str, lost: set[str], model_folder: Path, dataset_folder: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Days of training are lost because a font is missing, and --resume fails the same way."""
    train.main(command(model_folder, dataset_folder, tmp_path / "whole", "--max_steps", 1))
    whole = outputs_of(tmp_path / "whole")
    capsys.readouterr()
    original, calls = getattr(training_report, part), []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if part == "hash_files" and len(calls) == 1:  # of the adapter, which is being written
            return original(*arguments)
        raise RuntimeError("no such font\nand more")

    monkeypatch.setattr(training_report, part, fail)
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    captured = capsys.readouterr()
    assert outputs_of(tmp_path / "adapter") == whole - lost
    assert captured.err.count("failed (RuntimeError: no such font); the adapter is whole without it") == 1
    assert "and more" not in captured.err
    assert not (tmp_path / "adapter.checkpoints").exists()
    assert ("report.md" in captured.out) == ("report.md" not in lost)
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_dies_behind_the_training_has_its_adapter(model_folder: Path, dataset_folder: Path,
                                                             tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the report is made costs the adapter, or what is there is taken for somebody else's."""
    arguments = command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1)

    def interrupt(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_report, "complete_samples", interrupt)
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
    assert stop.value.code == 130
    alone = outputs_of(tmp_path / "adapter")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= alone
    assert "report.md" not in alone
    train.main([*arguments, "--resume"])
    assert outputs_of(tmp_path / "adapter") == alone | {"report.md", "training_curve.jsonl",
                                                        "training_curve.png"}


@pytest.mark.parametrize(("architecture", "shape", "shown"), [
    ("gpt2", lambda prompt: (prompt * 9)[:150], 3), ("llama", lambda prompt: (prompt * 9)[:150], 3),
    ("llama", lambda prompt: "", 0), ("gpt2", lambda prompt: "", 0),
    ("llama", lambda prompt: prompt if "alpha" in prompt else "", None)])
def test_prompts_of_any_length_are_completed_or_left_out(
        architecture: str, shape: Callable[[str], str], shown: int | None, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A prompt that fills the model's context, or an empty one, ends the run in a traceback at its end."""
    monkeypatch.setattr(tiny_models, "CONTEXT", 96)  # GPT-2 has a row for each position, and no more
    model = tiny_models.save_model(tmp_path / "model", architecture)
    whole = load_from_disk(str(tiny_models.save_dataset(tmp_path / "data")))
    shaped = whole.map(lambda row: {"prompt": shape(row["prompt"]), "completion": row["completion"][:20]})
    shaped.save_to_disk(str(tmp_path / "shaped"))
    train.main(command(model, tmp_path / "shaped", tmp_path / "adapter", "--max_steps", 1))
    captured = capsys.readouterr()
    assert "WARNING: completing" not in captured.err
    report = (tmp_path / "adapter" / "report.md").read_text()
    if shown is not None:
        assert report.count("**before**") == report.count("**after**") == shown
    else:
        assert 0 < report.count("**before**") < 4
    outputs_of(tmp_path / "adapter")


def test_training_that_does_not_help_says_so(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture) -> None:
    """A useless adapter is announced like a good one."""
    with_validation_losses(monkeypatch, [2.0, 2.5])
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    assert "WARNING: training did not lower the validation loss" in capsys.readouterr().err
