"""pipeline/training/checkpoints.py: what an interrupted run can go on from, and what it must not."""
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load
from training_runs import command, curve_of, failure, manifest_of

import train
from pipeline.training import trainer
from pipeline.training.callback import RunCallback
from pipeline.training.checkpoints import CHECKPOINT_HASHES, find_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = ("--num_train_epochs", 2, "--examples_per_step", 2, "--save_steps", 2, "--eval_steps", 3,
               "--lora_dropout", 0.1)
# 12 examples to train on in both: of a data set without files, and sequences of whole files
FOLDERS = {"pairs": "dataset_folder", "files": "files_folder", "middles": "files_folder"}
SEQUENCES = ("--sequence_tokens", 80, "--max_train_samples", 12)
# middles marked by tokens of bytes that no text has, whose embeddings are trained
SAMPLES = {"pairs": (), "files": SEQUENCES,
           "middles": (*SEQUENCES, "--fim_rate", 0.6, "--fim_tokens", "\u0100", "\u0101", "\u0102")}

# train.py, but waiting at a step of the second epoch so that the signal certainly comes while it trains.
WAITING_RUN = """
import sys, time
import torch
torch.set_num_threads(1)
import train
from pipeline.training import trainer
original, calls = trainer.sum_of_losses, 0
def slow(model, causal_model, batch):
    global calls
    calls += torch.is_grad_enabled()
    if calls == 12 and torch.is_grad_enabled():  # two before it measured memory and time
        print("WAITING", flush=True)
        time.sleep(1.5)
    return original(model, causal_model, batch)
trainer.sum_of_losses = slow
train.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, request: pytest.FixtureRequest,
                tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Return a function that gives the bytes of the adapter that an undisturbed run writes."""
    @functools.cache
    def adapter(train_on: str = "pairs", quantization: str = "none") -> bytes:
        output = tmp_path_factory.mktemp("undisturbed") / "adapter"
        settings = (*INTERRUPTED, *SAMPLES[train_on], "--quantization", quantization)
        train.main(command(model_folder, request.getfixturevalue(FOLDERS[train_on]), output, *settings))
        return (output / "adapter_model.safetensors").read_bytes()
    return adapter


@pytest.mark.parametrize(("number", "code", "train_on", "quantization"), [
    (signal.SIGTERM, 143, "files", "none"), (signal.SIGTERM, 143, "pairs", "none"),
    (signal.SIGKILL, -signal.SIGKILL, "files", "none"), (signal.SIGKILL, -signal.SIGKILL, "pairs", "none"),
    (signal.SIGKILL, -signal.SIGKILL, "middles", "none"),
    (signal.SIGKILL, -signal.SIGKILL, "files", "nf4")])
def test_resumed_run_ends_with_the_same_bytes(number: signal.Signals, code: int, train_on: str,
                                              quantization: str, model_folder: Path, tmp_path: Path,
                                              undisturbed: Callable[..., bytes],
                                              request: pytest.FixtureRequest,
                                              capsys: pytest.CaptureFixture) -> None:
    """After a kill in the second epoch, --resume sees other examples or another state: another adapter."""
    expected = undisturbed(train_on, quantization)
    dataset = request.getfixturevalue(FOLDERS[train_on])
    settings = (*INTERRUPTED, *SAMPLES[train_on], "--quantization", quantization)
    arguments = command(model_folder, dataset, tmp_path / "adapter", *settings)
    process = subprocess.Popen([sys.executable, "-c", WAITING_RUN, *arguments], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while "WAITING" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    checkpoints = {p.name for p in (tmp_path / "adapter.checkpoints").glob("checkpoint-*")}
    assert checkpoints
    if number == signal.SIGTERM:  # a checkpoint of the very step, and the user is told
        assert "checkpoint-10" in checkpoints
        assert "--resume" in errors
    assert not (tmp_path / "adapter").exists()
    if number == signal.SIGKILL:
        assert "--resume" in failure(arguments, capsys)  # not silently from the beginning

    train.main([*arguments, "--resume"])
    assert "going on from" in capsys.readouterr().out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == expected
    assert manifest_of(tmp_path / "adapter")["arguments"]["train_on"] == train_on.replace("middles", "files")
    steps = [row["step"] for row in curve_of(tmp_path / "adapter") if "train_loss" in row]
    assert steps == list(range(1, 13))
    assert not list((tmp_path / "adapter.checkpoints").glob("*"))


@pytest.fixture(scope="module")
def stopped(model_folder: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 4 and 6 of a run that was stopped before step 8."""
    folder = tmp_path_factory.mktemp("stopped")
    original, calls = trainer.sum_of_losses, []

    def stop(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        calls.append(torch.is_grad_enabled())
        if sum(calls) == 10:  # two before it measured memory and time
            raise KeyboardInterrupt
        return original(model, causal_model, batch)

    trainer.sum_of_losses = stop
    try:
        with pytest.raises(SystemExit) as stopped:
            train.main(command(model_folder, dataset_folder, folder / "adapter", *INTERRUPTED))
    finally:
        trainer.sum_of_losses = original
    assert stopped.value.code == 130
    names = {p.name for p in (folder / "adapter.checkpoints").glob("checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-6"}
    return folder


@pytest.mark.parametrize(("flag", "value", "named"), [
    ("--learning_rate", 0.5, "learning_rate is 0.5 now and was 0.001"), ("--seed", 3, "seed is 3"),
    ("--lora_r", 2, "lora_r is 2"), ("--quantization", "nf4", "quantization is 'nf4'"),
    ("--sequence_tokens", 64, "sequence_tokens is 64"),
    ("--end_of_text", "always", "end_of_text is 'always'"),
    ("--dataset", None, "dataset is")])
def test_resume_refuses_other_settings(flag: str, value: object, named: str, stopped: Path,
                                       model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                       capsys: pytest.CaptureFixture) -> None:
    """A run goes on with other settings than it began with, and its manifest says what is not true."""
    shutil.copytree(stopped, tmp_path / "run")
    value = tiny_models.save_dataset(tmp_path / "other", train=13) if value is None else value
    settings = (*INTERRUPTED, "--resume", flag, value)
    line = failure(command(model_folder, dataset_folder, tmp_path / "run" / "adapter", *settings), capsys)
    assert named in line
    assert "--overwrite" in line


def test_what_only_saves_memory_may_change_on_resume(stopped: Path, model_folder: Path, dataset_folder: Path,
                                                     tmp_path: Path,
                                                     undisturbed: Callable[..., bytes]) -> None:
    """A run that ended for lack of memory cannot go on with what would let it fit."""
    shutil.copytree(stopped, tmp_path / "run")
    output = tmp_path / "run" / "adapter"
    settings = (*INTERRUPTED, "--resume", "--gradient_checkpointing")
    train.main(command(model_folder, dataset_folder, output, *settings))
    resumed, whole = load((output / "adapter_model.safetensors").read_bytes()), load(undisturbed())
    assert all(resumed[name].sub(whole[name]).abs().max() < 1e-5 for name in whole)


def test_resume_refuses_data_and_models_of_other_content(stopped: Path, model_folder: Path,
                                                         dataset_folder: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture) -> None:
    """The base model or the data set was made anew under the same name, and the run goes on all the same."""
    shutil.copytree(stopped, tmp_path / "run")
    output = tmp_path / "run" / "adapter"
    seal = next(iter((tmp_path / "run" / "adapter.checkpoints").glob("checkpoint-6"))) / CHECKPOINT_HASHES
    before = json.loads(seal.read_text())
    for key in ("base_model_hash", "data_hash"):
        seal.write_text(json.dumps({**before, "settings": {**before["settings"], key: "other"}}))
        assert key in failure(command(model_folder, dataset_folder, output, *INTERRUPTED, "--resume"), capsys)


def test_checkpoints_are_not_lost_by_a_forgotten_flag(stopped: Path, model_folder: Path, dataset_folder: Path,
                                                      tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The same command without --resume deletes hours of work; with --overwrite it does not start."""
    shutil.copytree(stopped, tmp_path / "run")
    output, checkpoints = tmp_path / "run" / "adapter", tmp_path / "run" / "adapter.checkpoints"
    line = failure(command(model_folder, dataset_folder, output, *INTERRUPTED), capsys)
    assert "--resume" in line
    assert "--overwrite" in line
    assert (checkpoints / "checkpoint-6" / CHECKPOINT_HASHES).is_file()
    train.main(command(model_folder, dataset_folder, output, *INTERRUPTED, "--overwrite", "--max_steps", 1))
    assert (output / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("damage", ["flipped byte", "missing file", "no seal", "torn seal"])
def test_damaged_checkpoints_are_passed_over(damage: str, stopped: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture) -> None:
    """A run goes on from a checkpoint that a kill or a full disk left incomplete, silently and wrongly."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(stopped / "adapter.checkpoints", checkpoints)
    newest = checkpoints / "checkpoint-6"
    seal = json.loads((newest / CHECKPOINT_HASHES).read_text())
    assert find_checkpoint(checkpoints, seal["settings"]) == newest
    if damage == "flipped byte":
        content = bytearray((newest / "optimizer.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (newest / "optimizer.pt").write_bytes(content)
    elif damage == "missing file":
        (newest / "scheduler.pt").unlink()
    elif damage == "no seal":
        (newest / CHECKPOINT_HASHES).unlink()
    else:
        (newest / CHECKPOINT_HASHES).write_text('{"settings": {')
    assert find_checkpoint(checkpoints, seal["settings"]) == checkpoints / "checkpoint-4"
    assert "checkpoint-6" in capsys.readouterr().err


def test_a_checkpoint_written_over_a_damaged_one_is_whole(stopped: Path, model_folder: Path,
                                                          dataset_folder: Path, tmp_path: Path,
                                                          undisturbed: Callable[..., bytes],
                                                          capsys: pytest.CaptureFixture) -> None:
    """After one damaged checkpoint every later one of that step counts as damaged: the work since is lost."""
    shutil.copytree(stopped, tmp_path / "run")
    newest = tmp_path / "run" / "adapter.checkpoints" / "checkpoint-6"
    settings = json.loads((newest / CHECKPOINT_HASHES).read_text())["settings"]
    (newest / "scheduler.pt").write_bytes(b"damaged")
    saving = SimpleNamespace(accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
                             save_best=lambda file: None, tokens_per_batch=8)
    callback = RunCallback(saving, settings, 0)
    (newest / "scheduler.pt").write_bytes(b"written anew")
    state = SimpleNamespace(global_step=6, is_world_process_zero=True)
    callback.on_save(SimpleNamespace(output_dir=str(newest.parent)), state, None)
    assert find_checkpoint(newest.parent, settings) == newest

    (newest / "scheduler.pt").write_bytes(b"damaged")  # and the whole run: from checkpoint 4
    train.main(command(model_folder, dataset_folder, tmp_path / "run" / "adapter", *INTERRUPTED, "--resume"))
    captured = capsys.readouterr()
    assert "checkpoint-6: scheduler.pt has changed" in captured.err
    assert "checkpoint-4" in captured.out
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == undisturbed()
