"""pipeline/training/batches.py: how much passes through the model at once."""
import argparse
import json
from pathlib import Path

import pytest
import torch
from training_runs import arguments, command, curve_of

import train
from pipeline.run.errors import PipelineError
from pipeline.training import batches

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("free", "asked", "mac", "found"), [
    (10**9, "auto", False, "none"), (400_000, "auto", False, "nf4"), (10**9, "nf4", False, "nf4"),
    (400_000, "none", False, "none"), (400_000, "auto", True, "none"),
    (10**9, "nf4", True, "not for Apple's GPU")])
def test_4_bits_where_16_do_not_fit(free: int, asked: str, mac: bool, found: str, model_folder: Path,
                                    dataset_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not fit is loaded in 16 bits, or one that fits in 4, which is slower."""
    args = arguments(model_folder, dataset_folder, "--quantization", asked)
    monkeypatch.setattr(batches, "available_memory", lambda: free)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mac)
    if "Apple" in found:
        with pytest.raises(PipelineError, match=found):
            batches.choose_quantization(args, "bf16", 1)
    else:
        assert batches.choose_quantization(args, "bf16", 1) == found


def test_free_memory_decides_the_batch(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that the memory cannot hold is begun; or the batch changes what is learned."""
    monkeypatch.setattr(batches, "available_memory", lambda: 10**6)  # too little for two examples
    train.main(command(model_folder, dataset_folder, tmp_path / "small"))
    monkeypatch.undo()
    train.main(command(model_folder, dataset_folder, tmp_path / "large"))
    manifests = {name: json.loads((tmp_path / name / "manifest.json").read_text())
                 for name in ("small", "large")}
    assert manifests["small"]["tokens_per_batch"] < 150 < manifests["large"]["tokens_per_batch"]
    for a, b in zip(curve_of(tmp_path / "small"), curve_of(tmp_path / "large"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(("examples", "epochs", "asked", "max_steps", "expected"), [
    (240, 1.0, 0, 0, 1), (600, 1.0, 0, 0, 2), (1200, 1.0, 0, 0, 4), (1200, 2.0, 0, 0, 8),
    (3000, 1.0, 0, 0, 10), (100_000, 1.0, 0, 0, 16), (240, 1.0, 16, 0, 16), (100_000, 1.0, 1, 0, 1),
    (240, 1.0, 0, 30, 16)])
def test_a_short_run_has_small_steps(examples: int, epochs: float, asked: int, max_steps: int,
                                     expected: int) -> None:
    """An hour on a CPU is spent on few steps and learns less from the same tokens; or what was asked for is
    not what is done."""
    args = argparse.Namespace(examples_per_step=asked, num_train_epochs=epochs, max_steps=max_steps)
    assert batches.choose_examples_per_step(args, examples) == expected


def test_processes_without_work_are_told_of(capsys: pytest.CaptureFixture) -> None:
    """Four GPUs are paid for, and one of them works."""
    batches.tell_idle(4, 4)
    assert not capsys.readouterr().err
    batches.tell_idle(1, 4)
    assert capsys.readouterr().err == ("note: a step of 1 leaves 3 of the 4 processes idle; "
                                       "--examples_per_step 4 gives each one example\n")
