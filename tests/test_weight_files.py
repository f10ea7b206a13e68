"""pipeline/model/weight_files.py: which files a model's weights are, as transformers chooses them too."""
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from merging_runs import merge, peft_merge, stored
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.evaluation.candidates import identify_model
from pipeline.model.device import model_hash
from pipeline.model.weight_files import INDEX, SINGLE_FILE, stored_tensors, weight_files
from pipeline.run.errors import PipelineError

pytestmark = pytest.mark.usefixtures("one_thread")


def one_shard(folder: Path) -> Path:
    """Let the weights of a model be one file that only an index names, and return the folder."""
    shard = "model-00001-of-00001.safetensors"
    names = list(load_file(folder / SINGLE_FILE))
    os.rename(folder / SINGLE_FILE, folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def beside_stale_index(folder: Path, other: Path) -> Path:
    """Put the shards and the index of the model `other` beside the single file of a model."""
    for file in (*other.glob("model-*.safetensors"), other / INDEX):
        shutil.copy(file, folder)
    return folder


def test_one_shard_with_an_index_is_merged_to_what_loads(tmp_path: Path) -> None:
    """A base as mergekit writes it gives a merged model that nothing can load."""
    base = tiny_models.save_model(tmp_path / "base", "llama")
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    expected = peft_merge(base, adapter, torch.float32).state_dict()
    merge(adapter, tmp_path / "merged", "--base_model", one_shard(base), "--verify", "on")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_stale_index_is_left_out_by_every_stage(model_folder: Path, adapter_folder: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture) -> None:
    """An adapter is trained on one model and merged into the one that lay in its folder before."""
    other = tiny_models.save_model(tmp_path / "other", "llama", seed=5, max_shard_size="60KB")
    base = beside_stale_index(shutil.copytree(model_folder, tmp_path / "base"), other)
    assert weight_files(base) == [base / SINGLE_FILE]
    assert model_hash(str(base), None) == model_hash(str(model_folder), None)
    assert identify_model(str(base), None).weights_hash == model_hash(str(model_folder), None)
    assert capsys.readouterr().err.count("is left out") == 1  # once, and not by every stage that asks
    merge(adapter_folder, tmp_path / "merged", "--base_model", base, "--verify", "on")
    merge(adapter_folder, tmp_path / "plain", "--base_model", model_folder)
    assert {p.name for p in (tmp_path / "merged").glob("model*")} == {SINGLE_FILE}
    ours, expected = stored(tmp_path / "merged"), stored(tmp_path / "plain")
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("form", ["single", "shards", "one shard", "named by config.json", "beside others"])
def test_the_files_are_those_that_transformers_reads(form: str, tmp_path: Path) -> None:
    """A stage works with other weights than the model that is loaded has."""
    shards = "60KB" if form == "shards" else "50GB"
    folder = tiny_models.save_model(tmp_path / "model", "llama", max_shard_size=shards)
    if form == "one shard":
        one_shard(folder)
    elif form == "named by config.json":
        (folder / SINGLE_FILE).rename(folder / "weights.safetensors")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights":
                                                                 "weights.safetensors"}))
    elif form == "beside others":
        save_file({"x": torch.ones(2)}, folder / "consolidated.safetensors")
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    files = stored_tensors(folder)
    assert len(files) > 1 if form == "shards" else len(files) == 1
    found = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    assert {tensor.name for tensors in files for tensor in tensors} == set(found) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(("index", "named"), [
    (None, "and no model.safetensors.index.json"), ("{", "is not an index"), ("[]", "is not an index"),
    ("{}", "is not an index"), ('{"weight_map": null}', "is not an index"),
    ('{"weight_map": {"a": 3}}', "is not an index"),
    ('{"weight_map": {"a": "../other/model.safetensors"}}', "outside its folder")])
def test_damaged_indexes_are_one_line(index: str | None, named: str, tmp_path: Path) -> None:
    """Shards that nothing holds together are a traceback, or another model's weights are read."""
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    if index is not None:
        (tmp_path / INDEX).write_text(index)
    with pytest.raises(PipelineError, match=named):
        weight_files(tmp_path)


def test_weights_that_config_json_names_elsewhere_are_refused(tmp_path: Path) -> None:
    """A downloaded model reads a file of this machine."""
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "../secret.safetensors"}))
    with pytest.raises(PipelineError, match="outside its folder"):
        weight_files(tmp_path)
    assert weight_files(tmp_path / "nothing") == []
