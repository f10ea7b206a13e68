"""pipeline/training/callback.py: divergence, early stopping and signals."""
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_runs import command, summary_of, with_validation_losses

import train
from pipeline.run.errors import PipelineError
from pipeline.run.progress import progress
from pipeline.training.callback import RunCallback
from pipeline.training.trainer import CompletionTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_callback_ends_a_diverged_run() -> None:
    """A loss of NaN or infinity is logged and trained on."""
    callback = RunCallback(None, {}, 0)
    state = SimpleNamespace(global_step=3, max_steps=9)
    callback.on_log(None, state, None, {"loss": 1.0})
    good = {"eval_loss": 1.0, "eval_one_chunk_loss": 1.0, "eval_replay_loss": 1.0}
    callback.on_log(None, state, None, good)
    diverged = [good | {name: float("nan")} for name in good]
    for logs in ({"loss": float("nan")}, {"loss": float("inf")}, *diverged):
        with pytest.raises(PipelineError, match="diverged"):
            callback.on_log(None, state, None, logs)


def test_the_time_that_is_left_is_told_again_after_ten_steps(
        model_folder: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    """What one batch took before the run stays the estimate, although the first steps show another."""
    with_validation_losses(monkeypatch, [5.0, 4.0, 3.0])
    step = CompletionTrainer.training_step
    monkeypatch.setattr(CompletionTrainer, "training_step",
                        lambda *args, **kwargs: time.sleep(0.1) or step(*args, **kwargs))
    settings = ("--max_steps", 13, "--eval_steps", 12, "--learning_rate", 1e-6)
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", *settings))
    told = re.findall(r"step (\d+)/13: about ([\d.]+) s to go", capsys.readouterr().err)
    assert [step for step, _ in told] == ["11"]
    assert float(told[0][1]) >= 0.2  # two steps, each of which waits


def test_early_stopping(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A run that no longer improves goes on for hours although the flag is set."""
    with_validation_losses(monkeypatch, [5.0, 4.0, 4.1, 4.2])
    settings = ("--max_steps", 9, "--eval_steps", 1, "--early_stopping_patience", 2)
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", *settings))
    summary = summary_of(tmp_path / "adapter")
    assert (summary["steps"], summary["best_step"]) == (3, 1)
    assert "ending early" in capsys.readouterr().err


def test_what_is_shown_while_a_run_trains(capsys: pytest.CaptureFixture) -> None:
    """A loss is shown under the name of another, or a run without files or replay ends in a traceback."""
    callback = RunCallback(None, {}, 0)
    callback.bar = progress(desc="training", shown=False)
    state = SimpleNamespace(global_step=3, max_steps=9)
    for logs in ({"loss": 4.0}, {"eval_loss": 1.5}, {"eval_loss": 1.25, "eval_one_chunk_loss": 2.0},
                 {"eval_loss": 1.0, "eval_one_chunk_loss": 1.75, "eval_replay_loss": 3.0}, None):
        callback.on_log(None, state, None, logs)
    assert capsys.readouterr().err.splitlines() == [
        "step 3/9: validation loss 1.5000", "step 3/9: validation loss 1.2500, behind one chunk 2.0000",
        "step 3/9: validation loss 1.0000, behind one chunk 1.7500, replay 3.0000"]
    assert callback.shown == {"loss": "4.000", "validation loss": "1.000", "behind one chunk": "1.750",
                              "replay": "3.000"}


def test_signals_work_again_after_training() -> None:
    """SIGTERM between the last step and the end of the upload is swallowed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    callback = RunCallback(None, {}, 0)
    callback.on_train_begin(None, SimpleNamespace(is_world_process_zero=False), None)
    assert all(signal.getsignal(number) == callback.remember_signal for number in before)
    callback.on_train_end(None, None, None)
    assert {number: signal.getsignal(number) for number in before} == before
