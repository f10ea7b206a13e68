"""Small runs of train.py, and what they leave behind: what the tests of stage 3 share."""
import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import train
from pipeline.data.encoded_examples import encode_examples
from pipeline.training.trainer import CompletionTrainer


def command(model: Path, dataset: Path, output: Path, *more: object) -> list[str]:
    """Return the arguments of a small run; what stands in `more` comes last and wins."""
    places = ("--model_name_or_path", model, "--dataset", dataset, "--output_dir", output)
    settings = ("--quantization", "none", "--precision", "float32", "--examples_per_step", 4, "--lora_r", 4,
                "--logging_steps", 1)
    return [str(part) for part in (*places, *settings, *more)]


def arguments(model: Path, dataset: Path, *more: object) -> argparse.Namespace:
    """Return the parsed arguments of a small run whose output does not matter."""
    return train.build_parser().parse_args(command(model, dataset, Path("adapter"), *more))


def failure(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run the stage, which has to fail with exit code 1 and one line, and return that line."""
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 1
    errors = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(errors)
    assert ": error: " in errors[-1]
    assert sum(": error: " in line for line in errors) == 1
    return errors[-1]


def curve_of(folder: Path) -> list[dict[str, Any]]:
    """Return the points of a run's curve."""
    return [json.loads(line) for line in (folder / "training_curve.jsonl").read_text().splitlines()]


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return a run's manifest."""
    return json.loads((folder / "manifest.json").read_text())


def summary_of(folder: Path) -> dict[str, Any]:
    """Return the summary in a run's manifest."""
    return manifest_of(folder)["summary"]


def save_replay(file: Path, number: int) -> Path:
    """Write a file of `number` short Python examples and return it."""
    rows = [{"prompt": f"def f{i}(x):\n", "completion": f"    return x + {i}\n"} for i in range(number)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def encoded_rows(number: int = 7, seed: int = 5) -> list[dict[str, list[int]]]:
    """Return examples as the Trainer gets them."""
    prompts, completions = zip(*tiny_models.examples(number, seed), strict=True)
    found = encode_examples(tiny_models.make_tokenizer(), list(prompts), list(completions), 1024)
    return [found[i] for i in range(len(found))]


def with_validation_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the validations find these losses, one after the other."""
    left = iter(losses)
    monkeypatch.setattr(CompletionTrainer, "mean_loss", lambda self, model, examples: next(left))
