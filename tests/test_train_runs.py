"""train.py: whole runs: replay, the best adapter, early stopping, dry runs, trackers, compiled blocks, several processes."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from safetensors.torch import load_file
from test_train import command, curve_of, failure, one_thread  # noqa: F401  # the fixture

import train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "prepared", train=14)


def save_replay(file: Path, number: int) -> Path:
    file.write_text("".join(json.dumps({"prompt": f"def f{i}(x):\n", "completion": f"    return x + {i}\n"}) + "\n" for i in range(number)))
    return file


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["summary"]


def test_replay_is_mixed_in_and_validated_on_lines_of_its_own(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """The model forgets Python because replay is not trained on, or looks better than it is because its validation lines are."""
    replay = save_replay(tmp_path / "replay.jsonl", 40)
    training, validation = train.sample_replay(replay, 20, 0, seed=0)
    assert len(set(training[0])) == 20
    assert validation[0] == [f"def f{i}(x):\n" for i in range(36, 40)]
    assert not set(training[0]) & set(validation[0])
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--replay_dataset", replay, "--replay_fraction", 0.3))
    manifest = json.loads((tmp_path / "adapter" / "manifest.json").read_text())
    assert manifest["counts"]["train_examples"] == 14 + 6  # 6 of 20 are the 0.3
    assert manifest["counts"]["replay_validation_examples"] == 4
    points = [row for row in curve_of(tmp_path / "adapter") if "validation_loss" in row]
    assert all(row["replay_loss"] > 0 for row in points)
    assert manifest["summary"]["replay_loss_before"] == points[0]["replay_loss"]


@pytest.mark.parametrize(("lines", "flags", "named"), [
    (2, (), "examples are needed"), (40, ("--replay_fraction", 0.9), "examples are needed"), (None, (), "no such file")])
def test_replay_that_is_too_small_is_one_line(lines: int | None, flags: tuple, named: str, model_folder: Path, dataset_folder: Path,
                                              tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The share of replay is less than was asked for, and nobody is told."""
    file = tmp_path / "replay.jsonl"
    if lines is not None:
        save_replay(file, lines)
    line = failure(command(model_folder, dataset_folder, tmp_path / "adapter", "--replay_dataset", file, *flags), capsys)
    assert named in line
    assert not (tmp_path / "adapter").exists()


def test_replay_lines_that_are_broken_are_named(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                capsys: pytest.CaptureFixture) -> None:
    """A broken line in the replay file ends in a traceback."""
    file = save_replay(tmp_path / "replay.jsonl", 40)
    file.write_text(file.read_text() + '{"prompt": 3}\n')
    assert "line 41" in failure(command(model_folder, dataset_folder, tmp_path / "adapter", "--replay_dataset", file), capsys)


def with_validation_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the validations find these losses, one after the other."""
    original, left = train.make_trainer_class, iter(losses)

    def make() -> type:
        made = original()
        made.mean_loss = lambda self, model, examples: next(left)
        return made
    monkeypatch.setattr(train, "make_trainer_class", make)


def test_the_adapter_of_the_lowest_validation_loss_is_saved(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """What is saved is the last step's adapter although an earlier one was better."""
    train.main(command(model_folder, dataset_folder, tmp_path / "two", "--max_steps", 2, "--lr_scheduler_type", "constant_with_warmup",
                       "--eval_steps", 1))
    with_validation_losses(monkeypatch, [5.0, 4.0, 3.0, 3.5, 3.5])
    train.main(command(model_folder, dataset_folder, tmp_path / "four", "--max_steps", 4, "--lr_scheduler_type", "constant_with_warmup",
                       "--eval_steps", 1))
    assert (summary_of(tmp_path / "four")["best_step"], summary_of(tmp_path / "four")["validation_loss_after"]) == (2, 3.0)
    two, four = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "four"))
    assert all(two[name].equal(four[name]) for name in two)
    assert "(step 2, the best)" in capsys.readouterr().out


def test_the_best_adapter_survives_an_interruption(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has forgotten its best adapter and saves a worse one."""
    settings = ("--max_steps", 4, "--eval_steps", 1, "--lr_scheduler_type", "constant_with_warmup")
    with monkeypatch.context() as patch:
        with_validation_losses(patch, [5.0, 3.0, 4.0, 4.5, 4.6])
        train.main(command(model_folder, dataset_folder, tmp_path / "whole", *settings))
    with monkeypatch.context() as patch:
        with_validation_losses(patch, [5.0, 3.0, 4.0, float("nan")])  # ends the run at its third validation
        with pytest.raises(SystemExit):
            train.main(command(model_folder, dataset_folder, tmp_path / "resumed", *settings))
    with_validation_losses(monkeypatch, [4.5, 4.6])
    train.main(command(model_folder, dataset_folder, tmp_path / "resumed", *settings, "--resume"))
    whole, resumed = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    assert summary_of(tmp_path / "resumed")["best_step"] == 1


def test_early_stopping(model_folder: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                        capsys: pytest.CaptureFixture) -> None:
    """A run that no longer improves goes on for hours although the flag is set."""
    with_validation_losses(monkeypatch, [5.0, 4.0, 4.1, 4.2])
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 9, "--eval_steps", 1,
                       "--early_stopping_patience", 2))
    assert (summary_of(tmp_path / "adapter")["steps"], summary_of(tmp_path / "adapter")["best_step"]) == (3, 1)
    assert "ending early" in capsys.readouterr().err


def test_training_that_does_not_help_says_so(model_folder: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture) -> None:
    """A useless adapter is announced like a good one."""
    with_validation_losses(monkeypatch, [2.0, 2.5])
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    assert "WARNING: training did not lower the validation loss" in capsys.readouterr().err


def test_dry_run_shows_and_writes_nothing(model_folder: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A dry run trains, leaves files behind, or hides what the loss is taken on."""
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--dry_run", "--tokens_per_batch", 120))
    shown = capsys.readouterr().out
    prompt, _, completion = shown.partition("--- and ")
    assert "fun " in prompt
    assert "return" not in prompt.partition("one example")[2]
    for words in ("return", tiny_models.END_OF_TEXT, "(rows, tokens): ("):
        assert words in completion
    assert "% of what is computed are real tokens" in prompt
    assert "; about " in prompt
    assert {p.name for p in tmp_path.iterdir()} == {".adapter.lock"}


def test_free_memory_decides_the_batch(model_folder: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that the memory cannot hold is begun; or the batch changes what is learned."""
    monkeypatch.setattr(train, "available_memory", lambda: 10**6)  # too little for two examples
    train.main(command(model_folder, dataset_folder, tmp_path / "small"))
    monkeypatch.undo()
    train.main(command(model_folder, dataset_folder, tmp_path / "large"))
    manifests = {name: json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("small", "large")}
    assert manifests["small"]["tokens_per_batch"] < 150 < manifests["large"]["tokens_per_batch"]
    for a, b in zip(curve_of(tmp_path / "small"), curve_of(tmp_path / "large"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_measured_memory_is_that_of_the_batch(model_folder: Path, dataset_folder: Path) -> None:
    """The measured bytes a token have nothing to do with the batch, so that auto is a guess."""
    args = train.build_parser().parse_args(command(model_folder, dataset_folder, Path("unused")))
    tokenizer = tiny_models.make_tokenizer()
    data = train.encode_splits(args, tokenizer)
    model = train.add_adapters(train.load_base_model(str(model_folder), None, "none", "float32"), args)
    trainer = train.make_trainer_class()(model=model, args=train.training_arguments(args, Path("unused"), "float32", 2),
                                         train_dataset=data.train, eval_dataset=data.validation, replay_set=None, pad_token_id=0)
    one, four = (trainer.measure([data.train[0]] * n) for n in (1, 4))
    assert one[0] == pytest.approx(four[0], rel=0.2)  # a token costs the same in any batch
    hidden_states = 2 * 64 * 4  # at the least: what goes into each of the two blocks, in float32
    assert one[0] > hidden_states
    assert one[1] > 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_report_shows_completions_before_and_after(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """The report is missing, or a completion with backticks breaks out of its block."""
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    report = (tmp_path / "adapter" / "report.md").read_text()
    assert report.count("**before**") == report.count("**after**") == 3
    assert "training_curve.png" in report
    text = train.report_text({"steps": 1}, [], [{"prompt": "a", "reference": "b", "before": "````\n", "after": "c"}])
    assert text.count("`````") == 8


def test_tensorboard_gets_the_losses(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """--report_to is accepted and nothing is reported, or it is deleted with the checkpoints."""
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *command(model_folder, dataset_folder, tmp_path / "adapter"),
                           "--max_steps", "1", "--report_to", "tensorboard"], capture_output=True, text=True, timeout=120, check=False,
                          env={key: value for key, value in os.environ.items() if key != "TENSORBOARD_LOGGING_DIR"})
    assert done.returncode == 0, done.stderr
    written = list((tmp_path / "adapter.runs").rglob("events.out.tfevents.*"))
    assert written
    assert any(b"eval/loss" in file.read_bytes() for file in written)


def test_unknown_tracker_is_one_line(model_folder: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A tracker that is not there ends in a traceback."""
    assert "--report_to nonsense" in failure(command(model_folder, dataset_folder, tmp_path / "adapter", "--report_to", "nonsense"), capsys)


def test_gradient_checkpointing_learns_the_same(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """Saving memory changes the result."""
    for name, flags in (("plain", ()), ("checkpointed", ("--gradient_checkpointing",))):
        train.main(command(model_folder, dataset_folder, tmp_path / name, "--max_steps", 2, *flags))
    plain, checkpointed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "checkpointed"))
    for name in plain:
        assert plain[name].sub(checkpointed[name]).abs().max() < 1e-5


def test_compiled_blocks_learn_the_same(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """--torch_compile changes the result, or compiles the generation of the report's samples token by token."""
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    train.main(command(model_folder, dataset_folder, tmp_path / "eager", "--max_steps", 1))
    train.main(command(model_folder, dataset_folder, tmp_path / "compiled", "--max_steps", 1, "--torch_compile"))
    for a, b in zip(curve_of(tmp_path / "eager"), curve_of(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_two_processes_learn_what_one_does(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """With torchrun the steps hold other examples, or weigh them otherwise, and the loss curve is another one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    settings = ("--num_train_epochs", 2, "--examples_per_step", 4, "--eval_steps", 2)  # 14 examples: the last step has 2
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29571"])):
        done = subprocess.run([sys.executable, *launcher, str(ROOT / "train.py"), *command(model_folder, dataset_folder, tmp_path / name,
                                                                                          *settings)],
                              capture_output=True, text=True, timeout=180, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
    one, two = curve_of(tmp_path / "one"), curve_of(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=1e-3)
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["processes"] == 2
