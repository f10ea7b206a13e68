"""pipeline/merging/adapter.py: the scale of an adapter, and what is not a whole, plain LoRA adapter."""
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from merging_runs import merge, refusal
from safetensors.torch import load_file, save_file

from pipeline.merging.adapter import lora_scale

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("module", "config", "scale"), [
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8}, 2.0),
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}}, 4.0),
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8, "rank_pattern": {"proj": 2}}, 2.0),
    ("model.layers.11.mlp.up_proj",
     {"r": 4, "lora_alpha": 8, "alpha_pattern": {"layers.1.mlp.up_proj": 4}}, 2.0),
    ("model.layers.11.mlp.up_proj",
     {"r": 4, "lora_alpha": 8, "alpha_pattern": {r"layers\.1\d\..*": 4, "up_proj": 1}}, 1.0)])
def test_scale(module: str, config: dict[str, Any], scale: float) -> None:
    """The adapter is merged with another strength than it was trained with."""
    assert lora_scale(config, module) == scale


@pytest.mark.parametrize(("settings", "named"), [
    ({"use_dora": True}, "use_dora"), ({"bias": "lora_only"}, "bias is 'lora_only'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ({"trainable_token_indices": {"lm_head": [1, 2]}}, "those of the input embedding"),
    ({"lora_bias": True}, "lora_bias")])
def test_what_is_not_plain_lora_is_refused(settings: dict[str, Any], named: str, tmp_path: Path,
                                           capsys: pytest.CaptureFixture) -> None:
    """A part of the adapter is left out of the merge without a word."""
    base = tiny_models.save_model(tmp_path / "base", "qwen2", tied=False)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, **settings)
    assert named in refusal(capsys, adapter, tmp_path / "merged")


@pytest.mark.parametrize("beginning", ["pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "mica"])
@pytest.mark.parametrize("verify", ["off", "on"])
def test_adapters_of_changed_base_weights_are_refused_by_name(beginning: str, verify: str,
                                                              adapter_folder: Path, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture) -> None:
    """A PiSSA adapter is merged into weights that it was not trained on, without a word."""
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": beginning}))
    line = refusal(capsys, adapter, tmp_path / "merged", "--verify", verify)
    assert f"init_lora_weights is '{beginning}'" in line
    assert "--dtype" not in line


@pytest.mark.parametrize("setting", ["use_qalora", "target_parameters", "kasa_config", "of_a_later_peft"])
def test_settings_that_are_not_known_are_refused(setting: str, adapter_folder: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture) -> None:
    """What a new version of PEFT can do besides plain LoRA is left out of the merge without a word."""
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {setting: ["x"]}))
    assert f"{setting} is set" in refusal(capsys, adapter, tmp_path / "merged")


@pytest.mark.parametrize(("text", "named"), [
    ("null", "is not an adapter's configuration"), ("[]", "is not an adapter's configuration"),
    ("[" * 100_000, "not valid JSON"), ({"r": 0}, "r is 0"), ({"r": None}, "r is None"),
    ({"r": -4}, "r is -4"), ({"r": "4"}, "r is '4'"), ({"r": 2.5}, "r is 2.5"),
    ({"lora_alpha": None}, "lora_alpha is None"), ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"rank_pattern": [4]}, "rank_pattern is [4]"), ({"rank_pattern": {"q_proj": 0}}, "q_proj is 0"),
    ({"alpha_pattern": {"(": 4}}, "which is no pattern"), ({"alpha_pattern": {"q_proj": "x"}}, "is 'x'"),
    ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"), ({"revision": []}, "revision is []"),
    ({"bias": 3}, "bias is 3")])
def test_damaged_configurations_are_one_line(text: str | dict[str, Any], named: str, adapter_folder: Path,
                                             tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A damaged adapter_config.json is a traceback, or a merge with another strength."""
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(text if isinstance(text, str) else json.dumps(json.loads(file.read_text()) | text))
    line = refusal(capsys, adapter, tmp_path / "merged")
    assert named in line
    assert "adapter_config.json" in line


@pytest.mark.parametrize(("change", "named"), [
    ("unknown name", "extra.weight"), ("no lora_B", "has no lora_B"), ("no lora_A", "has no lora_A"),
    ("ranks", "ranks"), ("wrong shape", "is this the right base model?"),
    ("unknown module", "does not exist"), ("not safetensors", "not a whole safetensors file"),
    ("pickle only", "pickled weights are not loaded"), ("no config", "adapter_config.json"),
    ("not JSON", "not valid JSON"), ("other method", "only LORA"), ("both", "side by side")])
def test_damaged_adapters_are_refused(change: str, named: str, model_folder: Path, adapter_folder: Path,
                                      tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A damaged or foreign adapter gives a model that is not what was trained, or a traceback."""
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors = load_file(file)
    a = next(name for name in tensors if "q_proj.lora_A" in name)
    b = a.replace("lora_A", "lora_B")
    if change == "unknown name":
        tensors["base_model.model.extra.weight"] = torch.zeros(2, 2)
    elif change == "no lora_B":
        del tensors[b]
    elif change == "no lora_A":
        del tensors[a]
    elif change == "ranks":
        tensors[b] = torch.zeros(len(tensors[b]), 3)
    elif change == "wrong shape":
        tensors[b] = torch.zeros(len(tensors[b]) + 8, tensors[b].shape[1])
    elif change == "unknown module":
        for name in (a, b):
            tensors[name.replace("q_proj", "z_proj")] = tensors.pop(name)
    save_file(tensors, file)
    if change == "not safetensors":
        file.write_bytes(b"\x80\x04pickle" * 9)
    elif change == "pickle only":
        file.rename(adapter / "adapter_model.bin")
    elif change == "no config":
        config.unlink()
    elif change == "not JSON":
        config.write_text("{")
    elif change == "other method":
        config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "LOHA"}))
    elif change == "both":
        shutil.copy(model_folder / "model.safetensors", adapter)
    assert named in refusal(capsys, adapter, tmp_path / "merged")


def test_a_merged_folder_is_not_merged_again(adapter_folder: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture) -> None:
    """Merging what is merged already is a traceback, or looks like a success."""
    merge(adapter_folder, tmp_path / "merged")
    capsys.readouterr()
    assert "is merged already" in refusal(capsys, tmp_path / "merged", tmp_path / "again")
