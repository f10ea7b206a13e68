"""pipeline/training/trainer.py: steps cut into what the memory holds, validations, and the best adapter."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from training_runs import (
    arguments,
    command,
    curve_of,
    failure,
    save_replay,
    summary_of,
    with_validation_losses,
)
from transformers import AutoModelForCausalLM

import train
from pipeline.data.encoded_examples import EncodedExamples
from pipeline.training import trainer
from pipeline.training.lora import add_adapters, load_base_model
from pipeline.training.trainer import CompletionTrainer, training_arguments
from pipeline.training.training_data import encode_splits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("most_rows", [1, 3])
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(most_rows: int, model_folder: Path,
                                                                 dataset_folder: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture) -> None:
    """A run that runs out of memory ends, or counts a part of a step twice and learns something else."""
    settings = ("--examples_per_step", 6, "--max_steps", 2)
    train.main(command(model_folder, dataset_folder, tmp_path / "whole", *settings))
    original, refused = trainer.sum_of_losses, []

    def small(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        loss = original(model, causal_model, batch)
        if torch.is_grad_enabled() and len(batch["input_ids"]) > most_rows:
            refused.append(len(batch["input_ids"]))
            raise torch.OutOfMemoryError
        return loss

    monkeypatch.setattr(trainer, "sum_of_losses", small)
    train.main(command(model_folder, dataset_folder, tmp_path / "halved", *settings))
    assert refused
    assert "out of memory: going on with --tokens_per_batch" in capsys.readouterr().err
    whole, halved = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "halved"))
    for name in whole:
        torch.testing.assert_close(halved[name], whole[name], rtol=1e-4, atol=1e-6)


def test_an_example_that_does_not_fit_at_all_is_one_line(model_folder: Path, dataset_folder: Path,
                                                         tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture) -> None:
    """Halving the batch goes on for ever, or ends in a traceback."""
    original = trainer.sum_of_losses

    def full(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError
        return original(model, causal_model, batch)

    monkeypatch.setattr(trainer, "sum_of_losses", full)
    line = failure(command(model_folder, dataset_folder, tmp_path / "out"), capsys)
    assert "lower --sequence_tokens and --max_length" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("already_training", [False, True])
def test_where_one_example_does_not_fit_its_activations_are_computed_twice(
        already_training: bool, model_folder: Path, dataset_folder: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A run ends although gradient checkpointing would let it go on, or learns something else with it."""
    settings = ("--examples_per_step", 6, "--max_steps", 2)
    train.main(command(model_folder, dataset_folder, tmp_path / "whole", *settings))
    original, calls = trainer.sum_of_losses, []

    def small(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        loss = original(model, causal_model, batch)
        calls.append(len(batch["input_ids"]))
        measured = len(calls) > 2
        too_large = (measured or not already_training) and not causal_model.is_gradient_checkpointing
        if torch.is_grad_enabled() and too_large:
            raise torch.OutOfMemoryError
        return loss

    monkeypatch.setattr(trainer, "sum_of_losses", small)
    train.main(command(model_folder, dataset_folder, tmp_path / "checkpointed", *settings))
    assert capsys.readouterr().err.count("going on with --gradient_checkpointing") == 1
    whole, checkpointed = (load_file(tmp_path / name / "adapter_model.safetensors")
                           for name in ("whole", "checkpointed"))
    for name in whole:
        torch.testing.assert_close(checkpointed[name], whole[name], rtol=1e-4, atol=1e-6)


def test_measured_memory_is_that_of_the_batch(model_folder: Path, dataset_folder: Path,
                                              tmp_path: Path) -> None:
    """The measured bytes a token have nothing to do with the batch, so that auto is a guess."""
    args = arguments(model_folder, dataset_folder)
    tokenizer = tiny_models.make_tokenizer()
    data = encode_splits(args, tokenizer, train.DEFAULT_REPLAY_FRACTION)
    model = add_adapters(load_base_model(str(model_folder), None, "none", "float32"), args)
    settings = training_arguments(args, tmp_path, "float32", 2, train.WARMUP_RATIO)
    measuring = CompletionTrainer(model=model, args=settings, train_dataset=data.train,
                                  eval_dataset=data.validation, also={}, pad_token_id=0)
    one, four = (measuring.measure([data.train[0]] * n) for n in (1, 4))
    assert one[0] == pytest.approx(four[0], rel=0.2)  # a token costs the same in any batch
    hidden_states = 2 * 64 * 4  # at the least: what goes into each of the two blocks, in float32
    assert one[0] > hidden_states
    assert one[1] > 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_logged_validation_losses_are_those_of_all_labels(model_folder: Path, files_folder: Path,
                                                          tmp_path: Path) -> None:
    """The curve shows a mean of means, which weighs short batches too much, or the loss of another model or
    behind another context."""
    replay = save_replay(tmp_path / "replay.jsonl", 40)
    settings = ("--max_steps", 1, "--tokens_per_batch", 150, "--replay_dataset", replay)
    train.main(command(model_folder, files_folder, tmp_path / "out", *settings))
    data = encode_splits(arguments(model_folder, files_folder, *settings), tiny_models.make_tokenizer(), 0.1)
    model = AutoModelForCausalLM.from_pretrained(model_folder)

    def loss_of(rows: EncodedExamples) -> float:
        losses = []
        for i in range(len(rows)):
            row = {key: torch.tensor([value]) for key, value in rows[i].items()}
            with torch.no_grad():
                logits, labels = model(row["input_ids"]).logits[0, :-1], row["labels"][0, 1:]
            each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            losses += each[labels != -100].tolist()
        return np.mean(losses)

    before = curve_of(tmp_path / "out")[0]
    assert before["validation_loss"] == pytest.approx(loss_of(data.validation), rel=1e-4)
    assert before["one_chunk_loss"] == pytest.approx(loss_of(data.also["one_chunk"]), rel=1e-4)
    assert before["replay_loss"] == pytest.approx(loss_of(data.also["replay"]), rel=1e-4)
    assert before["one_chunk_loss"] != pytest.approx(before["validation_loss"], rel=2e-4)


def test_the_adapter_of_the_lowest_validation_loss_is_saved(model_folder: Path, dataset_folder: Path,
                                                            tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture) -> None:
    """What is saved is the last step's adapter although an earlier one was better."""
    settings = ("--lr_scheduler_type", "constant_with_warmup", "--eval_steps", 1)
    train.main(command(model_folder, dataset_folder, tmp_path / "two", "--max_steps", 2, *settings))
    with_validation_losses(monkeypatch, [5.0, 4.0, 3.0, 3.5, 3.5])
    train.main(command(model_folder, dataset_folder, tmp_path / "four", "--max_steps", 4, *settings))
    summary = summary_of(tmp_path / "four")
    assert (summary["best_step"], summary["validation_loss_after"]) == (2, 3.0)
    two, four = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "four"))
    assert all(two[name].equal(four[name]) for name in two)
    assert "(step 2, the best)" in capsys.readouterr().out


def test_the_best_adapter_is_that_of_the_longer_context(model_folder: Path, files_folder: Path,
                                                        tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is best at going on from one chunk, with which no editor asks."""
    longer, one_chunk = [5.0, 4.0, 3.0, 3.5], [6.0, 2.0, 5.0, 1.0]
    both = [loss for pair in zip(longer, one_chunk, strict=True) for loss in pair]
    settings = ("--lr_scheduler_type", "constant_with_warmup", "--eval_steps", 1, "--max_steps", 3)
    with monkeypatch.context() as patch:
        with_validation_losses(patch, both)
        train.main(command(model_folder, files_folder, tmp_path / "out", *settings))
    summary = summary_of(tmp_path / "out")
    assert (summary["best_step"], summary["validation_loss_after"], summary["one_chunk_loss_after"]) == (
        2, 3.0, 5.0)
    with_validation_losses(monkeypatch, both)
    settings = (*settings, "--early_stopping_patience", 1, "--max_steps", 5)
    train.main(command(model_folder, files_folder, tmp_path / "stopped", *settings))
    assert summary_of(tmp_path / "stopped")["steps"] == 3  # at the first validation that was no better


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
    whole, resumed = ((tmp_path / name / "adapter_model.safetensors").read_bytes()
                      for name in ("whole", "resumed"))
    assert whole == resumed
    assert summary_of(tmp_path / "resumed")["best_step"] == 1
