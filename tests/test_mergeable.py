"""pipeline/model/mergeable.py: what is refused before training as before merging."""
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from merging_runs import refusal
from training_runs import command, failure

from pipeline.model.mergeable import base_tensors, linear_layers, stored_weight
from pipeline.run.errors import PipelineError

pytestmark = pytest.mark.usefixtures("one_thread")

FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
GPTQ = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(("quantization", "origin", "named"), [
    (FOUR_BITS, "owner/whole", "in 4 bits (bitsandbytes)"), (GPTQ, None, "in 4 bits (gptq)"),
    ({"quant_method": "fp8"}, "/home/me/model", "stored (fp8)")])
def test_quantized_bases_are_refused_before_training_and_merging(
        quantization: dict[str, Any], origin: str | None, named: str, model_folder: Path,
        dataset_folder: Path, adapter_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Hours of training on a 4-bit checkpoint end with an adapter that cannot be merged."""
    base = shutil.copytree(model_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": quantization}
    (base / "config.json").write_text(json.dumps(config | ({"_name_or_path": origin} if origin else {})))
    for line, flag in ((failure(command(base, dataset_folder, tmp_path / "out"), capsys),
                        "--model_name_or_path"),
                       (refusal(capsys, adapter_folder, tmp_path / "merged", "--base_model", base),
                        "--base_model")):
        assert named in line
        assert line.endswith(f"by {flag}")
        assert ("(owner/whole)" in line) == (origin == "owner/whole")
        assert "/home/me" not in line


def test_vision_models_are_refused_before_training_and_merging(
        model_folder: Path, dataset_folder: Path, adapter_folder: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    """Hours of training on a model that reads images end with an adapter that cannot be merged."""
    base = shutil.copytree(model_folder, tmp_path / "base")
    (base / "config.json").write_text(json.dumps({"model_type": "gemma3", "vision_config": {},
                                                  "text_config": {}}))
    for line in (failure(command(base, dataset_folder, tmp_path / "out"), capsys),
                 refusal(capsys, adapter_folder, tmp_path / "merged", "--base_model", base)):
        assert "reads more than text (vision_config)" in line


def test_an_adapter_as_base_is_refused_before_training(model_folder: Path, dataset_folder: Path,
                                                       tmp_path: Path,
                                                       capsys: pytest.CaptureFixture) -> None:
    """An adapter is trained on top of another one, and merged without it."""
    base = tiny_models.save_adapter(tmp_path / "base", model_folder)
    line = failure(command(base, dataset_folder, tmp_path / "out"), capsys)
    assert "holds an adapter itself" in line


@pytest.mark.parametrize(("tied", "module", "named"), [
    (True, "lm_head", "the output head"), (False, "lm_head", None), (True, "model.embed_tokens", "Embedding"),
    (True, "model.layers.0.mlp", "LlamaMLP"), (True, "model.layers.0.mlp.up", "does not exist"),
    (True, "model.layers.0.mlp.up_proj", None)])
def test_only_linear_layers_with_a_weight_of_their_own_are_merged(tied: bool, module: str, named: str | None,
                                                                  tmp_path: Path) -> None:
    """An adapter of a tied head is merged into a tensor that is never read, or changes the embedding too."""
    folder = tiny_models.save_model(tmp_path / "base", "llama", tied=tied)
    model = tiny_models.make_model("llama", tied=tied)
    stored = {tensor.name: tensor for tensors in base_tensors(folder, "base") for tensor in tensors}
    if named:
        with pytest.raises(PipelineError, match=named):
            stored_weight(module, model, stored | {"lm_head.weight": stored["model.embed_tokens.weight"]},
                          folder)
    else:
        assert stored_weight(module, model, stored, folder) == f"{module}.weight"


def test_a_layer_that_the_files_do_not_hold_is_told(tmp_path: Path) -> None:
    """An adapter is trained on a layer that the model's files hold in another form."""
    folder = tiny_models.save_model(tmp_path / "base", "llama")
    model = tiny_models.make_model("llama")
    stored = {tensor.name: tensor for tensors in base_tensors(folder, "base") for tensor in tensors}
    assert len(linear_layers(model)) == 14
    for module in linear_layers(model):
        with pytest.raises(PipelineError, match="is not in the files of"):
            stored_weight(module, model, {name: tensor for name, tensor in stored.items()
                                          if not name.startswith(module)}, folder)
