"""pipeline/merging/base.py: which base model an adapter is merged into, and which it is not."""
import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import tiny_models
from merging_runs import refusal

import merge_lora
from pipeline.merging.base import choose_base
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import combined_hash, sha256_file

pytestmark = pytest.mark.usefixtures("one_thread")


def test_adapter_from_elsewhere_does_not_choose_a_local_base() -> None:
    """A downloaded adapter redirects the merge to a path on this machine."""
    arguments = Namespace(base_model=None, hf_repository="owner/adapter")
    with pytest.raises(PipelineError, match="--base_model"):
        choose_base(arguments, {"base_model_name_or_path": "/etc/model"}, Path("x"))
    with pytest.raises(PipelineError, match="--base_model"):
        choose_base(arguments, {"base_model_name_or_path": None}, Path("x"))
    config = {"base_model_name_or_path": "owner/base", "revision": "abc"}
    assert choose_base(arguments, config, Path("x")) == ("owner/base", "abc")


def test_a_base_that_has_changed_since_training_is_refused(tmp_path: Path,
                                                           capsys: pytest.CaptureFixture) -> None:
    """The base model's folder holds another model of the same shape now: one that never met the adapter."""
    base = tiny_models.save_model(tmp_path / "base", "llama")
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    trained_on = combined_hash({"model.safetensors": sha256_file(base / "model.safetensors")})
    manifest = {"manifest_version": 1, "base_model_hash": trained_on, "outputs": {}}
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    command = ["--hf_repository", str(adapter), "--output_dir", str(tmp_path / "merged"), "--verify", "off"]
    merge_lora.main(command)
    tiny_models.save_model(base, "llama", seed=5)
    with pytest.raises(SystemExit) as stop:
        merge_lora.main(command)
    assert stop.value.code == 1
    assert "is not the one that the adapter was trained on" in capsys.readouterr().err
    merge_lora.main([*command, "--base_model", str(base)])


def test_another_base_model_is_refused(adapter_folder: Path, tmp_path: Path,
                                       capsys: pytest.CaptureFixture) -> None:
    """An adapter is merged into a model that it was not trained on."""
    other = tiny_models.save_model(tmp_path / "gpt2", "gpt2")
    line = refusal(capsys, adapter_folder, tmp_path / "merged", "--base_model", other)
    assert "is this the right base model?" in line


@pytest.mark.parametrize(("damage", "named"), [
    ("missing", "no such folder"), ("pickled", "pickled weights"), ("torn", "not a whole safetensors"),
    ("shard", "model-00002"), ("adapter", "holds an adapter itself")])
def test_damaged_base_models_are_refused(damage: str, named: str, model_folder: Path, adapter_folder: Path,
                                         tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A base model that is not whole is a traceback, or gives a model with weights missing."""
    base = tmp_path / "base"
    if damage == "shard":
        tiny_models.save_model(base, "llama", max_shard_size="60KB")
        next(base.glob("model-00002*")).unlink()
    elif damage != "missing":
        shutil.copytree(model_folder, base)
        weights = base / "model.safetensors"
        if damage == "pickled":
            weights.rename(base / "pytorch_model.bin")
        elif damage == "torn":
            weights.write_bytes(weights.read_bytes()[:-1000])
        else:
            shutil.copy(adapter_folder / "adapter_config.json", base)
    assert named in refusal(capsys, adapter_folder, tmp_path / "merged", "--base_model", base)
