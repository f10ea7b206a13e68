"""pipeline/training/token_rows.py and the merge of such rows: embeddings that are trained with an adapter."""
import json
import shutil
from pathlib import Path
from typing import Any

import infilling_runs
import pytest
import tiny_models
import torch
from merging_runs import merge, peft_merge, refusal, stored
from safetensors.torch import load_file, save_file
from training_runs import arguments, command, encoded_rows, failure, manifest_of, summary_of
from transformers import AutoModelForCausalLM

import train
from pipeline.merging import lora_merge
from pipeline.model.padding import right_padded
from pipeline.training import loss
from pipeline.training.lora import make_model
from pipeline.training.token_rows import fuse_token_rows

pytestmark = pytest.mark.usefixtures("one_thread")

UNUSED = infilling_runs.UNUSED
BY_HAND = ("--fim_rate", 0.7, "--fim_tokens", *UNUSED, "--sequence_tokens", 80, "--max_train_samples", 16)
MODELS = [("llama", True), ("llama", False), ("qwen2", True), ("gpt2", True)]


@pytest.fixture(scope="module", params=MODELS, ids=lambda row: f"{row[0]}-{'tied' if row[1] else 'untied'}")
def trained(request: pytest.FixtureRequest, files_folder: Path,
            tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bool]:
    """Return a base model, an adapter of it that was trained with tokens by hand, and whether it is tied."""
    folder, (architecture, tied) = tmp_path_factory.mktemp("by_hand"), request.param
    base = infilling_runs.save_model(folder / "base", *UNUSED, architecture=architecture, tied=tied)
    train.main(command(base, files_folder, folder / "adapter", *BY_HAND, "--num_train_epochs", 3))
    return base, folder / "adapter", tied


def embedding_name(tensors: dict[str, Any]) -> str:
    """Return the name of the embedding among a model's stored tensors."""
    return next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight")))


def test_the_rows_are_trained_and_saved(trained: tuple[Path, Path, bool]) -> None:
    """The marks keep the meaning that chance gave them, or the whole embedding lies in the adapter."""
    base, adapter, tied = trained
    tensors = load_file(adapter / "adapter_model.safetensors")
    [name] = [name for name in tensors if "lora_" not in name]
    assert name.endswith("token_adapter.trainable_tokens_delta")
    tokenizer = infilling_runs.with_tokens(*UNUSED)
    # the end of a middle is learned with them, where that changes the head
    numbers = tokenizer.convert_tokens_to_ids(list(UNUSED)) + [tokenizer.eos_token_id] * tied
    before = stored(base)
    assert json.loads((adapter / "adapter_config.json").read_text())["trainable_token_indices"] == numbers
    assert tensors[name].dtype == torch.float32
    moved = (tensors[name] - before[embedding_name(before)][numbers]).abs().amax(dim=1)
    assert (moved > 1e-4).all()
    summary = summary_of(adapter)
    assert summary["infilling_loss_after"] < summary["infilling_loss_before"]
    assert manifest_of(adapter)["infilling"] == {
        "family": "by hand", "order": "psm", "layout": ["P", "prefix", "S", "suffix", "M", "middle"],
        "tokens": list(UNUSED), "by_hand": True}


def test_the_merge_holds_the_rows_on_both_sides(trained: tuple[Path, Path, bool], tmp_path: Path,
                                                capsys: pytest.CaptureFixture) -> None:
    """The merged model reads the marks as the base does, or its tied head is another than in training."""
    base, adapter, tied = trained
    merge(adapter, tmp_path / "merged", "--verify", "on")
    assert f"and {3 + tied} embeddings to merge" in capsys.readouterr().out
    before, after = stored(base), stored(tmp_path / "merged")
    name, rows = embedding_name(before), next(tensor for name, tensor in load_file(
        adapter / "adapter_model.safetensors").items() if "trainable_tokens" in name)
    numbers = json.loads((adapter / "adapter_config.json").read_text())["trainable_token_indices"]
    assert torch.equal(after[name][numbers], rows)
    others = [number for number in range(len(before[name])) if number not in numbers]
    assert torch.equal(after[name][others], before[name][others])
    if "lm_head.weight" in after and not tied:
        assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    ids = torch.arange(len(before[name]) - 12, len(before[name]))[None]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    expected = peft_merge(base, adapter, torch.float32)(ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert manifest_of(tmp_path / "merged")["adapter_manifest"]["infilling"]["tokens"] == list(UNUSED)
    assert name in manifest_of(tmp_path / "merged")["merged_tensors"]


def test_the_proof_finds_rows_that_are_left_out(trained: tuple[Path, Path, bool], tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture) -> None:
    """A merge whose marks mean nothing is published as verified."""
    base, adapter, _ = trained
    far = tmp_path / "adapter"
    shutil.copytree(adapter, far)
    tensors = load_file(far / "adapter_model.safetensors")
    name = next(name for name in tensors if "trainable_tokens" in name)
    tensors[name] = torch.randn(tensors[name].shape, generator=torch.manual_seed(0))
    save_file(tensors, far / "adapter_model.safetensors", metadata={"format": "pt"})
    (far / "manifest.json").unlink()
    original = lora_merge.locate_rows

    def none_replaced(rows: Any, *rest: Any) -> dict[str, Any]:
        found = original(rows, *rest)
        weight = stored(base)
        for name in found:
            found[name].rows = weight[name][found[name].tokens].float()
        return found

    monkeypatch.setattr(lora_merge, "locate_rows", none_replaced)
    line = refusal(capsys, far, tmp_path / "merged", "--verify", "on")
    assert "is not base + adapter" in line


def test_both_copies_of_a_tied_matrix_are_merged(trained: tuple[Path, Path, bool], tmp_path: Path) -> None:
    """A checkpoint that stores embedding and head although they are one gets two different ones."""
    base, adapter, tied = trained
    if not tied:
        pytest.skip("its head is its own")
    both = tmp_path / "base"
    shutil.copytree(base, both)
    tensors = stored(both)
    tensors["lm_head.weight"] = tensors[embedding_name(tensors)].clone()
    save_file(tensors, both / "model.safetensors", metadata={"format": "pt"})
    merge(adapter, tmp_path / "merged", "--base_model", both, "--verify", "on")
    after = stored(tmp_path / "merged")
    assert torch.equal(after["lm_head.weight"], after[embedding_name(after)])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pieces", [2048, 5])  # rows of the head at a time: all, or some
def test_gradients_are_those_of_peft(tied: bool, pieces: int, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head that is tied, only one side of a row is learned from, or the two depend on the batch."""
    base = infilling_runs.save_model(tmp_path / "base", *UNUSED, tied=tied)
    tokenizer = infilling_runs.with_tokens(*UNUSED)
    numbers = tuple(tokenizer.convert_tokens_to_ids(list(UNUSED)))
    args = arguments(base, tmp_path, *BY_HAND)
    rows = encoded_rows()
    for row in rows:
        row["input_ids"][:3] = numbers
    batch = right_padded(rows, tokenizer.eos_token_id)

    def gradients() -> tuple[float, dict[str, Any]]:
        model = make_model(args, "float32", tokenizer, max(numbers), numbers)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.manual_seed(len(name)))
        total = loss.sum_of_losses(model, model.get_base_model(), batch)
        total.backward()
        return total.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    monkeypatch.setattr("pipeline.training.lora.fuse_token_rows", lambda model: None)
    torch.manual_seed(1)
    expected, expected_gradients = gradients()
    monkeypatch.setattr("pipeline.training.lora.fuse_token_rows", fuse_token_rows)
    monkeypatch.setattr(loss, "HEAD_PIECE_ROWS", pieces)
    torch.manual_seed(1)
    found, found_gradients = gradients()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found_gradients.keys() == expected_gradients.keys()
    assert sum("trainable_tokens" in name for name in found_gradients) == 1
    for name, gradient in expected_gradients.items():
        assert torch.allclose(found_gradients[name], gradient, rtol=1e-4, atol=1e-4), name


def change_config(adapter: Path, folder: Path, **settings: Any) -> Path:
    """Copy the adapter with other settings, and return its folder."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(("setting", "said"), [
    ([1, 2], "are not those that adapter_config.json names"),
    (None, "0 layers with trained tokens are named"),
    ({"embed_tokens": [1, 2, 3], "lm_head": [1, 2, 3]}, "2 layers with trained tokens are named"),
    ({"lm_head": [1, 2, 3]}, "are not those that adapter_config.json names"),
    ([1, 1, 2], "not numbers of tokens"), ("abc", "not numbers of tokens"),
    ([1.5, 2, 3], "not numbers of tokens"), ([5, 6, 100_000], "do not fit")])
def test_rows_that_cannot_be_merged_are_refused(setting: Any, said: str, tmp_path: Path, files_folder: Path,
                                                capsys: pytest.CaptureFixture) -> None:
    """Embeddings that were trained are left out of the merge, or written into other tokens' places."""
    base = infilling_runs.save_model(tmp_path / "base", *UNUSED)
    numbers = infilling_runs.with_tokens(*UNUSED).convert_tokens_to_ids(list(UNUSED))
    made = tiny_models.save_adapter(tmp_path / "made", base, trainable_token_indices=numbers)
    infilling_runs.with_tokens(*UNUSED).save_pretrained(made)
    adapter = change_config(made, tmp_path / "adapter", trainable_token_indices=setting)
    assert said in refusal(capsys, adapter, tmp_path / "merged")


def test_tokens_without_a_row_are_one_line(tmp_path: Path, files_folder: Path, model_folder: Path,
                                           capsys: pytest.CaptureFixture) -> None:
    """Tokens that were added to the tokenizer alone end in an error of an index."""
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    infilling_runs.with_tokens(*UNUSED).save_pretrained(base)
    line = failure(command(base, files_folder, tmp_path / "adapter", *BY_HAND), capsys)
    assert "has the number" in line
    assert "use the tokenizer that belongs to the model" in line
