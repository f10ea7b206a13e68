"""train.py: what is learned from (labels, batches, loss, adapters), what a run leaves behind, and what a broken run can go on from."""
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from pipeline_io import PipelineError, encode_prompts

ROOT = Path(__file__).resolve().parents[1]
ROW_LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The number of threads is a setting that a resumed run must share; the models are too small for more than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "prepared")


def command(model: Path, dataset: Path, output: Path, *more: object) -> list[str]:
    """Return the arguments of a small run; what stands in `more` comes last and wins."""
    return [str(part) for part in ("--model_name_or_path", model, "--dataset", dataset, "--output_dir", output, "--quantization", "none",
                                   "--precision", "float32", "--examples_per_step", 4, "--lora_r", 4, "--logging_steps", 1, *more)]


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
    return [json.loads(line) for line in (folder / "training_curve.jsonl").read_text().splitlines()]


def rows_of(lengths: list[int]) -> list[dict[str, list[int]]]:
    return [{"input_ids": list(range(n)), "labels": [train.IGNORED_LABEL] * (n // 2) + list(range(n // 2, n))} for n in lengths]


def encoded(number: int = 7, seed: int = 5) -> list[dict[str, list[int]]]:
    prompts, completions = zip(*tiny_models.examples(number, seed), strict=True)
    found = train.encode_examples(tiny_models.make_tokenizer(), list(prompts), list(completions), 1024)
    return [found[i] for i in range(len(found))]


# What is learned from

def test_loss_is_on_the_completion_and_its_end_only() -> None:
    """The model is trained to repeat prompts, or never learns where a completion ends."""
    tokenizer = tiny_models.make_tokenizer()
    pairs = tiny_models.examples(9, seed=3)
    found = train.encode_examples(tokenizer, [p for p, _ in pairs], [c for _, c in pairs], 1024)
    assert len(found) == 9
    for i, (prompt, completion) in enumerate(pairs):
        row = found[i]
        start = encode_prompts(tokenizer, [prompt])[0]
        end = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert row["input_ids"] == start + end
        assert row["labels"] == [-100] * len(start) + end
        assert tokenizer.decode(row["input_ids"][:-1]) == prompt + completion


def test_prompt_and_completion_are_tokenized_apart() -> None:
    """The model is trained on a token across the border, which it cannot see when it is used."""
    tokenizer = tiny_models.make_tokenizer()
    whole = tokenizer("    return")["input_ids"]
    for cut in range(1, len("    return")):
        text = "    return"
        found = train.encode_examples(tokenizer, [text[:cut]], [text[cut:]], 1024)[0]
        apart = tokenizer(text[:cut])["input_ids"] + tokenizer(text[cut:])["input_ids"]
        assert found["input_ids"][:-1] == apart
    assert any(whole != tokenizer(text[:cut])["input_ids"] + tokenizer(text[cut:])["input_ids"] for cut in range(1, len(text)))


def test_text_that_looks_like_a_special_token_stays_text() -> None:
    """Source code that holds `<|endoftext|>` ends the example in its middle."""
    tokenizer = tiny_models.make_tokenizer()
    found = train.encode_examples(tokenizer, ["a = '<|endoftext|>'"], ["b = '<|endoftext|>'"], 1024)[0]
    assert found["input_ids"].count(tokenizer.eos_token_id) == 1
    assert found["input_ids"][-1] == tokenizer.eos_token_id


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.integers(2, 60))
def test_too_long_examples_keep_what_is_next_to_the_cut(prompt: int, completion: int, max_length: int) -> None:
    """A long example loses the end of its prompt, or its whole completion, or exceeds --max_length."""
    tokenizer = tiny_models.make_tokenizer()
    prompt_text, completion_text = "p" + "a;" * prompt, "c" + "b(" * completion
    row = train.encode_examples(tokenizer, [prompt_text], [completion_text], max_length)[0]
    start, end = tokenizer(prompt_text)["input_ids"], tokenizer(completion_text)["input_ids"]
    length = row["labels"].count(-100)
    assert 2 <= len(row["input_ids"]) <= max_length
    assert row["input_ids"][:length] == start[-length:]
    assert row["input_ids"][length:-1] == end[:max_length - 2]
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert len(row["input_ids"]) == min(max_length, len(start) + min(len(end), max_length - 2) + 1)


def test_end_of_text_is_learned_where_it_is_also_the_padding() -> None:
    """The model never stops: the end-of-text token is masked out because it doubles as the padding token."""
    tokenizer = tiny_models.make_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = encoded()
    batch = train.pad_batch(rows, tokenizer.eos_token_id)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["labels"][i, length - 1] == tokenizer.eos_token_id
        assert (batch["labels"][i, length:] == -100).all()
        assert batch["input_ids"][i, :length].tolist() == row["input_ids"]


@settings(max_examples=100, deadline=None)
@given(ROW_LENGTHS, st.integers(1, 400))
def test_batches_keep_to_the_budget_and_lose_no_row(lengths: list[int], budget: int) -> None:
    """A batch needs more memory than --tokens_per_batch allows, or an example is never trained on."""
    rows = rows_of(lengths)
    batches = list(train.token_batches(rows, budget))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    for batch in batches:
        padded = train.pad_batch(batch, 0)["input_ids"].shape
        assert padded == (len(batch), max(len(row["input_ids"]) for row in batch))  # its own longest row, not that of the set
        assert len(batch) == 1 or padded[0] * padded[1] <= budget


@settings(max_examples=100, deadline=None)
@given(ROW_LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_order_is_a_permutation_that_the_seed_determines(lengths: list[int], per_step: int, seed: int, epoch: int) -> None:
    """Examples are left out or repeated, or a resumed run sees them in another order."""
    array = np.array(lengths)
    order = train.step_order(array, per_step, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == train.step_order(array.copy(), per_step, seed, epoch)


def test_order_differs_between_epochs_and_puts_like_lengths_together() -> None:
    """Every epoch has the same order, or most of a batch is padding."""
    lengths = np.random.default_rng(0).integers(1, 200, size=1603)
    order = train.step_order(lengths, 16, 0, 0)
    assert order != train.step_order(lengths, 16, 0, 1)
    assert order != train.step_order(lengths, 16, 1, 0)
    steps = [lengths[order[i:i + 16]] for i in range(0, 1600, 16)]
    assert np.mean([step.max() - step.min() for step in steps]) < 10  # at random: about 175
    firsts = [step.mean() for step in steps]
    assert np.abs(np.corrcoef(firsts, range(len(firsts)))[0, 1]) < 0.3  # short and long steps come mixed


def test_sample_is_random_and_repeatable(dataset_folder: Path) -> None:
    """--max_train_samples takes the first files only, or another sample in every run."""
    from datasets import load_from_disk

    split = load_from_disk(str(dataset_folder))["train"]
    assert train.sample_examples(split, 5, 1) == train.sample_examples(split, 5, 1)
    assert train.sample_examples(split, 5, 1) != train.sample_examples(split, 5, 2)
    assert train.sample_examples(split, 5, 1)[0] != split["prompt"][:5]
    assert train.sample_examples(split, 0, 1)[0] == train.sample_examples(split, 99, 1)[0] == list(split["prompt"])


# The loss and the adapters

@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_full_logits(architecture: str) -> None:
    """Computing the head at labelled positions alone changes what is learned."""
    import torch

    model = tiny_models.make_model(architecture)
    batch = train.pad_batch(encoded(), tiny_models.make_tokenizer().eos_token_id)
    count = int((batch["labels"] != -100).sum())
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (batch["input_ids"].shape[1] - len(row["input_ids"])) for row in encoded()])
    expected = model(**batch, attention_mask=mask).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = train.sum_of_losses(model, model, batch) / count
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape  # the hook on the head is gone


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_every_linear_layer_but_the_head_gets_an_adapter(architecture: str) -> None:
    """Layers are left without an adapter (GPT-2's Conv1D are the usual ones), or the head gets one and cannot be merged."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = tiny_models.make_model(architecture).requires_grad_(False)
    linear = {name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))} - {"lm_head"}
    adapted = train.add_adapters(model, train.build_parser().parse_args(["--lora_r", "4"]))
    found = {name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
             for name, _ in adapted.named_modules() if name.endswith(".lora_A.default")}
    assert found == linear
    assert len(linear) >= 8
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    assert all(p.dtype == torch.float32 for p in adapted.parameters() if p.requires_grad)
    assert adapted.peft_config["default"].lora_alpha == 8  # twice the rank, unless it is given


@pytest.mark.parametrize(("architecture", "quantization"), [*((name, "none") for name in tiny_models.ARCHITECTURES), ("llama", "nf4")])
def test_fused_adapters_compute_what_peft_computes(architecture: str, quantization: str, tmp_path: Path) -> None:
    """The adapter that is trained is another function than the one that PEFT loads and merges, or its gradients are wrong."""
    import torch

    folder = tiny_models.save_model(tmp_path / "model", architecture)
    args = train.build_parser().parse_args(["--lora_r", "4", "--lora_alpha", "12", "--use_rslora"])
    base = train.load_base_model(str(folder), None, quantization, "float32").train()
    batch = train.pad_batch(encoded(), tiny_models.make_tokenizer().eos_token_id)
    base_loss = train.sum_of_losses(base, base, batch).item()
    model = train.add_adapters(base, args).train()
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    assert layers
    assert all("forward" in vars(layer) for layer in layers)  # every layer is fused
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)  # zero at first, where no gradient of A could be seen

    def result() -> tuple[float, dict[str, Any]]:
        model.zero_grad()
        loss = train.sum_of_losses(model, model.get_base_model(), batch)
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    fused_loss, fused = result()
    with torch.no_grad(), model.disable_adapter():
        assert train.sum_of_losses(model, model.get_base_model(), batch).item() == pytest.approx(base_loss, rel=1e-6)
    for layer in layers:
        del layer.forward  # PEFT's own again
    peft_loss, expected = result()
    assert fused_loss == pytest.approx(peft_loss, rel=1e-5)
    assert fused_loss != pytest.approx(base_loss, rel=1e-4)
    assert len(expected) == 2 * len(layers)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(fused[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item(),
                                   msg=lambda text, name=name: f"{name}: {text}")


def test_adapters_with_dropout_are_left_to_peft() -> None:
    """--lora_dropout is accepted and does nothing."""
    adapted = train.add_adapters(tiny_models.make_model("llama").requires_grad_(False),
                                 train.build_parser().parse_args(["--lora_dropout", "0.5"])).train()
    assert not any("forward" in vars(layer) for layer in adapted.modules() if hasattr(layer, "lora_A"))
    import torch

    for layer in adapted.modules():
        if hasattr(layer, "lora_A"):
            torch.nn.init.normal_(layer.lora_B["default"].weight)
    batch = train.pad_batch(encoded(), tiny_models.make_tokenizer().eos_token_id)
    losses = {train.sum_of_losses(adapted, adapted.get_base_model(), batch).item() for _ in range(3)}
    assert len(losses) == 3


def test_logits_that_are_needed_again_are_not_overwritten_unseen() -> None:
    """In a model whose logits its own backward pass needs, the gradients are silently wrong."""
    import torch

    hidden = torch.randn(3, 8, requires_grad=True)
    targets = torch.tensor([1, 2, 3])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        train.loss_function().apply(torch.tanh(hidden), targets).backward()
    capped = (4 * torch.tanh(hidden)) * 1.0  # as in models with a soft cap
    train.loss_function().apply(capped, targets).backward()
    found, hidden.grad = hidden.grad, None
    torch.nn.functional.cross_entropy(4 * torch.tanh(hidden), targets, reduction="sum").backward()
    torch.testing.assert_close(found, hidden.grad)


def test_unknown_layer_names_are_one_line(model_folder: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A misspelt --lora_target_modules is a traceback out of PEFT."""
    line = failure(command(model_folder, dataset_folder, tmp_path / "out", "--lora_target_modules", "nonsense"), capsys)
    assert "--lora_target_modules nonsense" in line


@pytest.mark.parametrize("most_rows", [1, 3])
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(most_rows: int, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A run that runs out of memory ends, or counts a part of a step twice and learns something else."""
    import torch
    from safetensors.torch import load_file

    train.main(command(model_folder, dataset_folder, tmp_path / "whole", "--examples_per_step", 6, "--max_steps", 2))
    original = train.sum_of_losses
    refused = []

    def small(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        loss = original(model, causal_model, batch)
        if torch.is_grad_enabled() and len(batch["input_ids"]) > most_rows:
            refused.append(len(batch["input_ids"]))
            raise torch.OutOfMemoryError
        return loss

    monkeypatch.setattr(train, "sum_of_losses", small)
    train.main(command(model_folder, dataset_folder, tmp_path / "halved", "--examples_per_step", 6, "--max_steps", 2))
    assert refused
    assert "out of memory: going on with --tokens_per_batch" in capsys.readouterr().err
    whole, halved = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "halved"))
    for name in whole:
        torch.testing.assert_close(halved[name], whole[name], rtol=1e-4, atol=1e-6)


def test_an_example_that_does_not_fit_at_all_is_one_line(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Halving the batch goes on for ever, or ends in a traceback."""
    import torch

    original = train.sum_of_losses

    def full(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError
        return original(model, causal_model, batch)

    monkeypatch.setattr(train, "sum_of_losses", full)
    assert "--max_length" in failure(command(model_folder, dataset_folder, tmp_path / "out"), capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("already_training", [False, True])
def test_where_one_example_does_not_fit_its_activations_are_computed_twice(
        already_training: bool, model_folder: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    """A run ends although gradient checkpointing would let it go on, or learns something else with it."""
    import torch
    from safetensors.torch import load_file

    settings = ("--examples_per_step", 6, "--max_steps", 2)
    train.main(command(model_folder, dataset_folder, tmp_path / "whole", *settings))
    original, calls = train.sum_of_losses, []

    def small(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        loss = original(model, causal_model, batch)
        calls.append(len(batch["input_ids"]))
        measured = len(calls) > 2
        if torch.is_grad_enabled() and (measured or not already_training) and not causal_model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError
        return loss

    monkeypatch.setattr(train, "sum_of_losses", small)
    train.main(command(model_folder, dataset_folder, tmp_path / "checkpointed", *settings))
    assert capsys.readouterr().err.count("going on with --gradient_checkpointing") == 1
    whole, checkpointed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "checkpointed"))
    for name in whole:
        torch.testing.assert_close(checkpointed[name], whole[name], rtol=1e-4, atol=1e-6)


def test_nf4_gradients_are_the_same_after_an_evaluation(model_folder: Path) -> None:
    """Training with NF4 on a CPU learns next to nothing: the evaluation before the first step cuts the gradients off."""
    import torch

    batch = train.pad_batch(encoded(), tiny_models.make_tokenizer().eos_token_id)
    found = []
    for evaluate_first in (False, True):
        torch.manual_seed(0)
        model = train.add_adapters(train.load_base_model(str(model_folder), None, "nf4", "float32"), train.build_parser().parse_args([]))
        if evaluate_first:
            with torch.no_grad():
                train.sum_of_losses(train.evaluation_mode(model), model.get_base_model(), batch)
            assert not model.training
        train.sum_of_losses(model.train(), model.get_base_model(), batch).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if ".lora_B" in name})
    assert len(found[0]) == 14
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


# A run

@pytest.mark.parametrize(("quantization", "precision"), [("none", "float32"), ("nf4", "float32"), ("nf4", "bf16")])
def test_the_same_command_trains_with_and_without_nf4(quantization: str, precision: str, model_folder: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    """Training on a CPU fails or learns nothing, or its folder lacks what the next stages need."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dataset = tiny_models.save_dataset(tmp_path / "data", train=4, validation=4)
    output = tmp_path / "adapter"
    train.main(command(model_folder, dataset, output, "--quantization", quantization, "--precision", precision, "--num_train_epochs", 24,
                       "--learning_rate", 3e-2, "--eval_steps", 12))
    curve = curve_of(output)
    losses = [row["train_loss"] for row in curve if "train_loss" in row]
    assert len(losses) == 24
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert [row["step"] for row in curve if "validation_loss" in row] == [0, 12, 24]  # before the first step, during, after
    assert [row["examples"] for row in curve if "validation_loss" in row] == [0, 48, 96]
    manifest = json.loads((output / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {p.name for p in output.iterdir()} - {"manifest.json"}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "training_curve.jsonl",
            "training_curve.png"} <= set(manifest["outputs"])
    assert manifest["arguments"]["learning_rate"] == 3e-2
    assert manifest["quantization"] == quantization
    assert manifest["summary"]["validation_loss_before"] == curve[0]["validation_loss"]
    assert manifest["summary"]["validation_loss_after"] == curve[-1]["validation_loss"]
    assert manifest["counts"]["train_examples"] == 4
    assert not (tmp_path / "adapter.checkpoints").exists() or not list((tmp_path / "adapter.checkpoints").iterdir())
    assert (output / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {output}" in capsys.readouterr().out.splitlines()[-1]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), output)
    assert AutoTokenizer.from_pretrained(output).eos_token == tiny_models.END_OF_TEXT


def test_logged_validation_loss_is_that_of_all_labels(model_folder: Path, dataset_folder: Path, tmp_path: Path) -> None:
    """The curve shows a mean of means, which weighs short batches too much, or the loss of another model."""
    import torch
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM

    train.main(command(model_folder, dataset_folder, tmp_path / "out", "--max_steps", 1, "--tokens_per_batch", 150))
    split = load_from_disk(str(dataset_folder))["validation"]
    rows = train.encode_examples(tiny_models.make_tokenizer(), list(split["prompt"]), list(split["completion"]), 1024)
    model, losses = AutoModelForCausalLM.from_pretrained(model_folder), []
    for i in range(len(rows)):
        row = {key: torch.tensor([value]) for key, value in rows[i].items()}
        with torch.no_grad():
            losses += torch.nn.functional.cross_entropy(model(row["input_ids"]).logits[0, :-1], row["labels"][0, 1:], reduction="none")[
                row["labels"][0, 1:] != -100].tolist()
    assert curve_of(tmp_path / "out")[0]["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("logging_steps", [1, 50])
def test_divergence_ends_the_run(logging_steps: int, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture) -> None:
    """Hours after the loss became NaN the run ends as a success, with an adapter of NaN."""
    line = failure(command(model_folder, dataset_folder, tmp_path / "out", "--learning_rate", 1e30, "--max_steps", 4,
                           "--logging_steps", logging_steps), capsys)
    assert "nan" in line.lower()
    assert "--learning_rate" in line
    assert not (tmp_path / "out").exists()


# Mistakes

@pytest.mark.parametrize("mistake", ["no_columns", "no_data", "empty", "no_split", "no_model", "no_config", "damaged"])
def test_mistakes_are_one_line_and_leave_the_previous_output(mistake: str, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture) -> None:
    """A mistake costs a traceback, or the adapter of the run before."""
    from datasets import DatasetDict, load_from_disk

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
        DatasetDict({"train": whole["train"].select([]), "validation": whole["validation"]}).save_to_disk(str(dataset))
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


# Interrupted runs

INTERRUPTED = ("--num_train_epochs", 2, "--examples_per_step", 2, "--save_steps", 2, "--eval_steps", 3, "--lora_dropout", 0.1)

# Run train.py as a user does, but wait at a step of the second epoch so that the signal certainly comes while it trains.
WAITING_RUN = """
import sys, time
import torch
torch.set_num_threads(1)
import train
original, calls = train.sum_of_losses, 0
def slow(model, causal_model, batch):
    global calls
    calls += torch.is_grad_enabled()
    if calls == 12 and torch.is_grad_enabled():  # two before it measured memory and time
        print("WAITING", flush=True)
        time.sleep(1.5)
    return original(model, causal_model, batch)
train.sum_of_losses = slow
train.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of the adapter that an undisturbed run writes, by the quantization of the base model."""
    import torch

    torch.set_num_threads(1)
    found = {}
    for quantization in ("none", "nf4"):
        output = tmp_path_factory.mktemp("undisturbed") / "adapter"
        train.main(command(model_folder, dataset_folder, output, *INTERRUPTED, "--quantization", quantization))
        found[quantization] = (output / "adapter_model.safetensors").read_bytes()
    return found


@pytest.mark.parametrize(("number", "code", "quantization"), [(signal.SIGTERM, 143, "none"), (signal.SIGKILL, -signal.SIGKILL, "none"),
                                                              (signal.SIGKILL, -signal.SIGKILL, "nf4")])
def test_resumed_run_ends_with_the_same_bytes(number: signal.Signals, code: int, quantization: str, model_folder: Path,
                                              dataset_folder: Path, tmp_path: Path, undisturbed: dict[str, bytes],
                                              capsys: pytest.CaptureFixture) -> None:
    """After a kill in the second epoch, --resume sees other examples or another optimizer state: another adapter."""

    arguments = command(model_folder, dataset_folder, tmp_path / "adapter", *INTERRUPTED, "--quantization", quantization)
    process = subprocess.Popen([sys.executable, "-c", WAITING_RUN, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    while "WAITING" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    checkpoints = sorted((tmp_path / "adapter.checkpoints").glob("checkpoint-*"))
    assert checkpoints
    if number == signal.SIGTERM:  # a checkpoint of the very step, and the user is told
        assert checkpoints[-1].name == "checkpoint-10" or (tmp_path / "adapter.checkpoints" / "checkpoint-10").is_dir()
        assert "--resume" in errors
    assert not (tmp_path / "adapter").exists()
    if number == signal.SIGKILL:
        assert "--resume" in failure(arguments, capsys)  # not silently from the beginning

    train.main([*arguments, "--resume"])
    assert "going on from" in capsys.readouterr().out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == undisturbed[quantization]
    steps = [row["step"] for row in curve_of(tmp_path / "adapter") if "train_loss" in row]
    assert steps == list(range(1, 13))
    assert not list((tmp_path / "adapter.checkpoints").glob("*"))


@pytest.fixture(scope="module")
def stopped(model_folder: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 4 and 6 of a run that was stopped before step 8."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    original, calls = train.sum_of_losses, []

    def stop(model: Any, causal_model: Any, batch: dict[str, Any]) -> Any:
        calls.append(torch.is_grad_enabled())
        if sum(calls) == 10:  # two before it measured memory and time
            raise KeyboardInterrupt
        return original(model, causal_model, batch)

    train.sum_of_losses = stop
    try:
        with pytest.raises(SystemExit) as stopped:
            train.main(command(model_folder, dataset_folder, folder / "adapter", *INTERRUPTED))
    finally:
        train.sum_of_losses = original
    assert stopped.value.code == 130
    assert {p.name for p in (folder / "adapter.checkpoints").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    return folder


@pytest.mark.parametrize(("flag", "value", "named"), [
    ("--learning_rate", 0.5, "learning_rate is 0.5 now and was 0.001"), ("--seed", 3, "seed is 3"), ("--lora_r", 2, "lora_r is 2"),
    ("--quantization", "nf4", "quantization is 'nf4'"), ("--dataset", None, "dataset is")])
def test_resume_refuses_other_settings(flag: str, value: object, named: str, stopped: Path, model_folder: Path, dataset_folder: Path,
                                       tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A run goes on with other settings than it began with, and its manifest says something that is not true."""
    shutil.copytree(stopped, tmp_path / "run")
    value = tiny_models.save_dataset(tmp_path / "other", train=13) if value is None else value
    line = failure(command(model_folder, dataset_folder, tmp_path / "run" / "adapter", *INTERRUPTED, "--resume", flag, value), capsys)
    assert named in line
    assert "--overwrite" in line


def test_what_only_saves_memory_may_change_on_resume(stopped: Path, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                     undisturbed: dict[str, bytes]) -> None:
    """A run that ended for lack of memory cannot go on with what would let it fit."""
    from safetensors.torch import load

    shutil.copytree(stopped, tmp_path / "run")
    output = tmp_path / "run" / "adapter"
    train.main(command(model_folder, dataset_folder, output, *INTERRUPTED, "--resume", "--gradient_checkpointing"))
    resumed, whole = load((output / "adapter_model.safetensors").read_bytes()), load(undisturbed["none"])
    assert all(resumed[name].sub(whole[name]).abs().max() < 1e-5 for name in whole)


def test_resume_refuses_data_and_models_of_other_content(stopped: Path, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture) -> None:
    """The base model or the data set was made anew under the same name, and the run goes on as if nothing had changed."""
    shutil.copytree(stopped, tmp_path / "run")
    output = tmp_path / "run" / "adapter"
    seal = next(iter((tmp_path / "run" / "adapter.checkpoints").glob("checkpoint-6"))) / train.CHECKPOINT_HASHES
    before = json.loads(seal.read_text())
    for key in ("base_model_hash", "data_hash"):
        seal.write_text(json.dumps({**before, "settings": {**before["settings"], key: "other"}}))
        assert key in failure(command(model_folder, dataset_folder, output, *INTERRUPTED, "--resume"), capsys)


def test_checkpoints_are_not_lost_by_a_forgotten_flag(stopped: Path, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    """The same command without --resume deletes hours of work; with --overwrite it does not start."""
    shutil.copytree(stopped, tmp_path / "run")
    output, checkpoints = tmp_path / "run" / "adapter", tmp_path / "run" / "adapter.checkpoints"
    line = failure(command(model_folder, dataset_folder, output, *INTERRUPTED), capsys)
    assert "--resume" in line
    assert "--overwrite" in line
    assert (checkpoints / "checkpoint-6" / train.CHECKPOINT_HASHES).is_file()
    train.main(command(model_folder, dataset_folder, output, *INTERRUPTED, "--overwrite", "--max_steps", 1))
    assert (output / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("damage", ["flipped byte", "missing file", "no seal", "torn seal"])
def test_damaged_checkpoints_are_passed_over(damage: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A run goes on from a checkpoint that a kill or a full disk left incomplete, silently and wrongly."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(stopped / "adapter.checkpoints", checkpoints)
    newest = checkpoints / "checkpoint-6"
    seal = json.loads((newest / train.CHECKPOINT_HASHES).read_text())
    assert train.find_checkpoint(checkpoints, seal["settings"]) == newest
    if damage == "flipped byte":
        content = bytearray((newest / "optimizer.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (newest / "optimizer.pt").write_bytes(content)
    elif damage == "missing file":
        (newest / "scheduler.pt").unlink()
    elif damage == "no seal":
        (newest / train.CHECKPOINT_HASHES).unlink()
    else:
        (newest / train.CHECKPOINT_HASHES).write_text('{"settings": {')
    assert train.find_checkpoint(checkpoints, seal["settings"]) == checkpoints / "checkpoint-4"
    assert "checkpoint-6" in capsys.readouterr().err


def test_a_checkpoint_written_over_a_damaged_one_is_whole(stopped: Path, model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                                          undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture) -> None:
    """After one damaged checkpoint every later one of that step is taken for damaged as well, and the work since is lost."""

    shutil.copytree(stopped, tmp_path / "run")
    newest = tmp_path / "run" / "adapter.checkpoints" / "checkpoint-6"
    settings = json.loads((newest / train.CHECKPOINT_HASHES).read_text())["settings"]
    (newest / "scheduler.pt").write_bytes(b"damaged")
    trainer = SimpleNamespace(accelerator=SimpleNamespace(wait_for_everyone=lambda: None), save_best=lambda file: None, tokens_per_batch=8)
    callback = train.make_callback(trainer, settings, 0)
    (newest / "scheduler.pt").write_bytes(b"written anew")
    callback.on_save(SimpleNamespace(output_dir=str(newest.parent)), SimpleNamespace(global_step=6, is_world_process_zero=True), None)
    assert train.find_checkpoint(newest.parent, settings) == newest

    (newest / "scheduler.pt").write_bytes(b"damaged")  # and the whole run: from checkpoint 4
    train.main(command(model_folder, dataset_folder, tmp_path / "run" / "adapter", *INTERRUPTED, "--resume"))
    captured = capsys.readouterr()
    assert "checkpoint-6: scheduler.pt has changed" in captured.err
    assert "checkpoint-4" in captured.out
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == undisturbed["none"]


def test_callback_ends_a_diverged_run() -> None:
    """A loss of NaN or infinity is logged and trained on."""
    callback = train.make_callback(None, {}, 0)
    state = SimpleNamespace(global_step=3, max_steps=9)
    callback.on_log(None, state, None, {"loss": 1.0})
    for logs in ({"loss": float("nan")}, {"loss": float("inf")}, {"eval_loss": float("nan")}):
        with pytest.raises(PipelineError, match="diverged"):
            callback.on_log(None, state, None, logs)


def test_signals_work_again_after_training() -> None:
    """SIGTERM between the last step and the end of the upload is swallowed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    callback = train.make_callback(None, {}, 0)
    callback.on_train_begin(None, SimpleNamespace(is_world_process_zero=False), None)
    assert all(signal.getsignal(number) == callback.remember_signal for number in before)
    callback.on_train_end(None, None, None)
    assert {number: signal.getsignal(number) for number in before} == before
