"""train.py: whole runs, and mistakes of its command line."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from datasets import DatasetDict, load_from_disk
from peft import PeftModel
from safetensors.torch import load_file
from training_runs import command, curve_of, failure, save_replay
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from pipeline.training.replay import sample_replay

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny data set of 14 examples: of its steps of 4, the last has 2."""
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "prepared", train=14)


@pytest.mark.parametrize(("train_on", "quantization", "precision"), [
    ("files", "none", "float32"), ("pairs", "none", "float32"), ("pairs", "nf4", "float32"),
    ("files", "nf4", "bf16")])
def test_the_same_command_trains_with_and_without_nf4(train_on: str, quantization: str, precision: str,
                                                      model_folder: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    """Training on a CPU fails or learns nothing, or its folder lacks what the next stages need; with or
    without whole files in the data set."""
    files = train_on == "files"
    dataset = tiny_models.save_dataset(tmp_path / "data", train=8 if files else 4, validation=4, files=files)
    output = tmp_path / "adapter"
    settings = ("--quantization", quantization, "--precision", precision, "--num_train_epochs", 24,
                "--learning_rate", 3e-2, "--eval_steps", 12)
    train.main(command(model_folder, dataset, output, *settings))
    curve = curve_of(output)
    losses = [row["train_loss"] for row in curve if "train_loss" in row]
    assert len(losses) == 24
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    validated = [row for row in curve if "validation_loss" in row]
    assert [row["step"] for row in validated] == [0, 12, 24]  # before the first step, during, after
    assert [row["examples"] for row in validated] == [0, 48, 96]
    assert all(("one_chunk_loss" in row) is files for row in validated)
    manifest = json.loads((output / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {p.name for p in output.iterdir()} - {"manifest.json"}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json",
            "training_curve.jsonl", "training_curve.png"} <= set(manifest["outputs"])
    assert manifest["arguments"]["learning_rate"] == 3e-2
    assert manifest["arguments"]["train_on"] == train_on
    assert manifest["quantization"] == quantization
    assert manifest["summary"]["validation_loss_before"] == curve[0]["validation_loss"]
    best = min(validated[1:], key=lambda row: row["validation_loss"])
    assert manifest["summary"]["validation_loss_after"] == best["validation_loss"]
    if files:
        assert manifest["summary"]["one_chunk_loss_before"] == curve[0]["one_chunk_loss"]
        assert manifest["summary"]["one_chunk_loss_after"] == best["one_chunk_loss"]
        assert f"| {best['one_chunk_loss']:.4f} |" in (output / "report.md").read_text()
    assert manifest["counts"]["train_examples"] == 4
    assert not list((tmp_path / "adapter.checkpoints").glob("*"))
    assert (output / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert f"wrote {output}" in said.out.splitlines()[-1]
    assert (f"note: {dataset} holds no whole files: training on its pairs" in said.err) is not files
    assert ("4 sequences of whole files, of at most 512 tokens" in said.out) is files
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), output)
    assert AutoTokenizer.from_pretrained(output).eos_token == tiny_models.END_OF_TEXT


def test_replay_is_mixed_in_and_validated_on_lines_of_its_own(model_folder: Path, dataset_folder: Path,
                                                              tmp_path: Path) -> None:
    """Python is forgotten as replay is not trained on, or seems remembered as its validation lines are."""
    replay = save_replay(tmp_path / "replay.jsonl", 40)
    training, validation = sample_replay(replay, 20, 0, seed=0)
    assert len(set(training[0])) == 20
    assert validation[0] == [f"def f{i}(x):\n" for i in range(36, 40)]
    assert not set(training[0]) & set(validation[0])
    settings = ("--replay_dataset", replay, "--replay_fraction", 0.3)
    train.main(command(model_folder, dataset_folder, tmp_path / "adapter", *settings))
    manifest = json.loads((tmp_path / "adapter" / "manifest.json").read_text())
    assert manifest["counts"]["train_examples"] == 14 + 6  # 6 of 20 are the 0.3
    assert manifest["counts"]["replay_validation_examples"] == 4
    points = [row for row in curve_of(tmp_path / "adapter") if "validation_loss" in row]
    assert all(row["replay_loss"] > 0 for row in points)
    assert manifest["summary"]["replay_loss_before"] == points[0]["replay_loss"]


def test_gradient_checkpointing_learns_the_same(model_folder: Path, dataset_folder: Path,
                                                tmp_path: Path) -> None:
    """Saving memory changes the result."""
    for name, flags in (("plain", ()), ("checkpointed", ("--gradient_checkpointing",))):
        train.main(command(model_folder, dataset_folder, tmp_path / name, "--max_steps", 2, *flags))
    plain, checkpointed = (load_file(tmp_path / name / "adapter_model.safetensors")
                           for name in ("plain", "checkpointed"))
    for name in plain:
        assert plain[name].sub(checkpointed[name]).abs().max() < 1e-5


def test_compiled_blocks_learn_the_same(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """--torch_compile changes the result, or compiles the generation of the samples token by token."""
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    for name, flags in (("eager", ()), ("compiled", ("--torch_compile",))):
        train.main(command(model_folder, dataset_folder, tmp_path / name, "--max_steps", 1, *flags))
    for a, b in zip(curve_of(tmp_path / "eager"), curve_of(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_two_processes_learn_what_one_does(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """With torchrun the steps hold other examples, or weigh them otherwise: the curve is another one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    settings = ("--num_train_epochs", 2, "--examples_per_step", 4, "--eval_steps", 2)
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29571")
    for name, launcher in (("one", ()), ("two", torchrun)):
        arguments = command(model_folder, dataset_folder, tmp_path / name, *settings)
        done = subprocess.run([sys.executable, *launcher, str(ROOT / "train.py"), *arguments],
                              capture_output=True, text=True, timeout=180, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
    one, two = curve_of(tmp_path / "one"), curve_of(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=1e-3)
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["processes"] == 2


def test_tensorboard_gets_the_losses(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """--report_to is accepted and nothing is reported, or it is deleted with the checkpoints."""
    pytest.importorskip("tensorboard")
    settings = ("--max_steps", 1, "--report_to", "tensorboard")
    arguments = command(model_folder, dataset_folder, tmp_path / "adapter", *settings)
    environment = {key: value for key, value in os.environ.items() if key != "TENSORBOARD_LOGGING_DIR"}
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], capture_output=True,
                          text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    written = list((tmp_path / "adapter.runs").rglob("events.out.tfevents.*"))
    assert written
    assert any(b"eval/loss" in file.read_bytes() for file in written)


# Mistakes

@pytest.mark.parametrize("mistake", [
    "no_columns", "no_data", "empty", "no_split", "no_model", "no_config", "damaged"])
def test_mistakes_are_one_line_and_leave_the_previous_output(mistake: str, model_folder: Path,
                                                             dataset_folder: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture) -> None:
    """A mistake costs a traceback, or the adapter of the run before."""
    output = tmp_path / "adapter"
    output.mkdir()
    (output / "adapter_model.safetensors").write_bytes(b"previous")
    (output / "adapter_config.json").write_text("{}")
    outputs = {"adapter_model.safetensors": "", "adapter_config.json": ""}
    (output / "manifest.json").write_text(json.dumps({"manifest_version": 1, "outputs": outputs}))
    model, dataset = model_folder, tmp_path / "data"
    whole = load_from_disk(str(dataset_folder))
    if mistake == "no_columns":
        whole.rename_column("completion", "text").save_to_disk(str(dataset))
        expected = "no column completion"
    elif mistake == "no_data":
        expected = "no data set folder"
    elif mistake == "empty":
        nothing = whole["train"].select([])
        DatasetDict({"train": nothing, "validation": whole["validation"]}).save_to_disk(str(dataset))
        expected = "is empty"
    elif mistake == "no_split":
        DatasetDict({"train": whole["train"]}).save_to_disk(str(dataset))
        expected = "no split 'validation'"
    elif mistake == "damaged":
        tiny_models.save_dataset(dataset)
        next(dataset.glob("train/*.arrow")).write_bytes(b"\0" * 64)
        expected = str(dataset)
    else:
        dataset, model = dataset_folder, tmp_path / "model"
        expected = f"model {model}"
        if mistake == "no_config":
            model.mkdir()
    line = failure(command(model, dataset, output), capsys)
    assert expected in line
    assert (output / "adapter_model.safetensors").read_bytes() == b"previous"


def test_a_folder_of_somebody_else_is_not_replaced(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture) -> None:
    """--output_dir ~/thesis deletes the thesis."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("long work")
    assert "did not write" in failure(command(model_folder, dataset_folder, tmp_path / "thesis"), capsys)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "long work"


def test_unknown_layer_names_are_one_line(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                          capsys: pytest.CaptureFixture) -> None:
    """A misspelt --lora_target_modules is a traceback out of PEFT."""
    settings = ("--lora_target_modules", "nonsense")
    line = failure(command(model_folder, dataset_folder, tmp_path / "out", *settings), capsys)
    assert "--lora_target_modules nonsense" in line


def test_an_end_token_without_an_embedding_is_one_line(model_folder: Path, dataset_folder: Path,
                                                       tmp_path: Path,
                                                       capsys: pytest.CaptureFixture) -> None:
    """A tokenizer_config.json that was edited ends in "index out of range in self"."""
    model = shutil.copytree(model_folder, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|im_end|>"}))
    line = failure(command(model, dataset_folder, tmp_path / "out"), capsys)
    assert "its end-of-text token, '<|im_end|>', has the number" in line


def test_unknown_tracker_is_one_line(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                     capsys: pytest.CaptureFixture) -> None:
    """A tracker that is not there ends in a traceback."""
    arguments = command(model_folder, dataset_folder, tmp_path / "adapter", "--report_to", "nonsense")
    assert "--report_to nonsense" in failure(arguments, capsys)


@pytest.mark.parametrize(("lines", "flags", "named"), [
    (2, (), "examples are needed"), (40, ("--replay_fraction", 0.9), "examples are needed"),
    (None, (), "no such file")])
def test_replay_that_is_too_small_is_one_line(lines: int | None, flags: tuple, named: str, model_folder: Path,
                                              dataset_folder: Path, tmp_path: Path,
                                              capsys: pytest.CaptureFixture) -> None:
    """The share of replay is less than was asked for, and nobody is told."""
    file = tmp_path / "replay.jsonl"
    if lines is not None:
        save_replay(file, lines)
    settings = ("--replay_dataset", file, *flags)
    line = failure(command(model_folder, dataset_folder, tmp_path / "adapter", *settings), capsys)
    assert named in line
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("line", ['{"prompt": 3}', '{"prompt": "a", "completion": "b", "ends": "yes"}'])
def test_replay_lines_that_are_broken_are_named(line: str, model_folder: Path, dataset_folder: Path,
                                                tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A broken line in the replay file ends in a traceback."""
    file = save_replay(tmp_path / "replay.jsonl", 40)
    file.write_text(file.read_text() + line + "\n")
    arguments = command(model_folder, dataset_folder, tmp_path / "adapter", "--replay_dataset", file)
    assert "line 41" in failure(arguments, capsys)


@pytest.mark.parametrize("logging_steps", [1, 50])
def test_divergence_ends_the_run(logging_steps: int, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture) -> None:
    """Hours after the loss became NaN the run ends as a success, with an adapter of NaN."""
    settings = ("--learning_rate", 1e30, "--max_steps", 4, "--logging_steps", logging_steps)
    line = failure(command(model_folder, dataset_folder, tmp_path / "out", *settings), capsys)
    assert "nan" in line.lower()
    assert "--learning_rate" in line
    assert not (tmp_path / "out").exists()
