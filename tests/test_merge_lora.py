"""merge_lora.py: whole runs, and which folders it does not write to."""
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tiny_models
from merging_runs import merge, refusal
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_merged_folder_is_an_ordinary_model(model_folder: Path, adapter_folder: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture) -> None:
    """It runs remote code, says it is an adapter, lacks its tokenizer, or discloses paths of this machine."""
    base = shutil.copytree(model_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_name_or_path": "/secret"}
    (base / "config.json").write_text(json.dumps(config))
    merge(adapter_folder, tmp_path / "merged", "--base_model", base, "--verify", "on")
    output = capsys.readouterr().out
    assert "verified against base + adapter" in output
    assert output.splitlines()[-1].startswith(f"wrote {tmp_path / 'merged'} in ")
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md",
            "manifest.json"} <= names
    assert not [name for name in names if name.startswith("adapter")]
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert not {"auto_map", "_name_or_path", "quantization_config"} & set(written)
    assert str(tmp_path) not in (tmp_path / "merged" / "README.md").read_text()
    manifest = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert set(manifest["outputs"]) == names - {"manifest.json"}
    assert manifest["verification"]["top_token_agreement"] >= 0.9
    assert manifest["counts"]["merged_matrices"] == 14
    with safe_open(tmp_path / "merged" / "model.safetensors", "np") as stored:
        hashes = {name: hashlib.sha256(stored.get_tensor(name).tobytes()).hexdigest()
                  for name in manifest["merged_tensors"]}
    assert hashes == manifest["merged_tensors"]  # a reader can check each merged tensor by itself
    assert len(manifest["merged_tensors"]) == 14
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=False)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == tiny_models.END_OF_TEXT


def test_a_second_merge_replaces_the_first(model_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    """A run after a new training keeps the old merge, or refuses its own output folder."""
    merge(adapter_folder, tmp_path / "merged")
    first = (tmp_path / "merged" / "model.safetensors").read_bytes()
    other = tiny_models.save_adapter(tmp_path / "other", model_folder, seed=9)
    merge(other, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() != first
    merge(adapter_folder, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == first


def test_output_beside_an_adapter_is_refused(adapter_folder: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture) -> None:
    """Merged weights beside an adapter: a later load applies the adapter a second time."""
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    assert "second time" in refusal(capsys, adapter, adapter)
    other = shutil.copytree(adapter_folder, tmp_path / "other")
    assert "second time" in refusal(capsys, adapter, other)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("long work")
    assert "did not write" in refusal(capsys, adapter, thesis)
