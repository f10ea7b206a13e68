"""pipeline/merging/lora_merge.py: the merged weights against PEFT's and against float64."""
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from bitsandbytes.functional import dequantize_4bit
from merging_runs import merge, peft_merge, stored
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.training.lora import load_base_model

pytestmark = pytest.mark.usefixtures("one_thread")


def exact(base: Path, adapter: Path) -> dict[str, Any]:
    """Return the merged matrices in float64, by the formula, from the files alone; the scale is alpha / r."""
    weights = stored(base)
    lora = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    merged = {}
    for name in [n for n in lora if n.endswith(".lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        product = lora[name.replace("lora_A", "lora_B")].double() @ lora[name].double()
        names = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        stored_name = next(n for n in weights if n in names)
        transposed = "attn.c_" in module or "mlp.c_" in module  # GPT-2's Conv1D
        delta = product.T if transposed else product
        merged[stored_name] = weights[stored_name].double() + scale * delta
    return merged


CASES = [(architecture, None, {}) for architecture in tiny_models.ARCHITECTURES] + [
    ("llama", True, {}), ("qwen2", True, {}), ("gpt2", False, {}), ("phi", None, {"use_rslora": True}),
    ("llama", None, {"use_rslora": True, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
                     "alpha_pattern": {"v_proj": 3}}),
    ("gpt2", None, {"rank_pattern": {"c_fc": 2}, "alpha_pattern": {"h.0.attn.c_attn": 32, "c_proj": 1}}),
    ("qwen2", None, {"rank_pattern": {"q_proj": 7},
                     "alpha_pattern": {"proj": 1, r"model.layers.\d+.self_attn.o_proj": 5}}),
    ("phi", None, {"target_modules": ["q_proj", "fc2"], "r": 1})]


@pytest.mark.parametrize(("architecture", "tied", "lora"), CASES)
def test_merged_model_is_what_peft_merges(architecture: str, tied: bool | None, lora: dict[str, Any],
                                          tmp_path: Path) -> None:
    """The published model is not base + adapter: another scale, a transposed matrix, a layer left out."""
    base = tiny_models.save_model(tmp_path / "base", architecture, tied=tied)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, **lora)
    merge(adapter, tmp_path / "merged")
    expected = peft_merge(base, adapter, torch.float32)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(found, "peft_config")
    ours, theirs = found.state_dict(), expected.state_dict()
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6,
                                   msg=lambda text, name=name: f"{name}: {text}")
    ids = torch.arange(3, 40)[None]
    unmerged = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        ours, theirs, before = (model.eval()(ids).logits for model in (found, expected, unmerged))
    assert (ours - theirs).abs().max() < 1e-4
    assert (before - theirs).abs().max() > 0.01
    assert set(stored(tmp_path / "merged")) == set(stored(base))  # a tied head is not stored twice


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["phi", "gpt2"])
def test_rounding_is_no_worse_than_pefts(architecture: str, dtype: str, tmp_path: Path) -> None:
    """The merge loses more to rounding than the usual way: the product is rounded before it is added."""
    base = tiny_models.save_model(tmp_path / "base", architecture, dtype=getattr(torch, dtype))
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, std=0.02)
    merge(adapter, tmp_path / "merged")
    truth, ours = exact(base, adapter), stored(tmp_path / "merged")
    theirs = peft_merge(base, adapter, getattr(torch, dtype)).state_dict()
    assert len(truth) >= 8
    for name, expected in truth.items():
        assert ours[name].dtype == getattr(torch, dtype)
        key = name if name in theirs else f"transformer.{name}"
        rounded = expected.to(ours[name].dtype)
        error, pefts, least = ((weight.double() - expected).abs()
                               for weight in (ours[name], theirs[key], rounded))
        by_float32 = expected.float().to(ours[name].dtype)
        assert torch.equal(ours[name], by_float32) or error.mean() <= least.mean() * 1.001
        assert error.max() <= pefts.max()


@pytest.mark.parametrize(("dtype", "base_dtype"), [
    ("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32"), ("base", "bfloat16"),
    ("base", "float32")])
def test_dtype_is_that_of_the_flag(dtype: str, base_dtype: str, tmp_path: Path) -> None:
    """--dtype is ignored, or the configuration says another type than the files have."""
    base = tiny_models.save_model(tmp_path / "base", "llama", dtype=getattr(torch, base_dtype))
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    merge(adapter, tmp_path / "merged", "--dtype", dtype)
    expected = base_dtype if dtype == "base" else dtype
    merged, truth, plain = stored(tmp_path / "merged"), exact(base, adapter), stored(base)
    assert {tensor.dtype for tensor in merged.values()} == {getattr(torch, expected)}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == expected
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == getattr(torch, expected)
    rtol, atol = (1e-2, 1e-3) if "16" in expected else (1e-6, 1e-6)
    for name, tensor in merged.items():
        reference = truth.get(name, plain[name].double())
        torch.testing.assert_close(tensor.double(), reference, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("architecture", "lora"), [
    ("llama", {}), ("gpt2", {}), ("llama", {"target_modules": ["q_proj", "down_proj"]})])
def test_nf4_base_is_what_training_saw(architecture: str, lora: dict[str, Any], tmp_path: Path) -> None:
    """--base nf4 merges into weights that training never saw: the head quantized, or a layer not."""
    base = tiny_models.save_model(tmp_path / "base", architecture)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, **lora)
    merge(adapter, tmp_path / "merged", "--base", "nf4", "--verify", "on")
    quantized = load_base_model(str(base), None, "nf4", "float32")
    weights = load_file(adapter / "adapter_model.safetensors")
    ours, original = stored(tmp_path / "merged"), stored(base)
    checked = 0
    for name, module in quantized.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        expected = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        a, b = (weights.get(f"base_model.model.{name}.lora_{side}.weight") for side in "AB")
        if a is not None:
            expected = expected + 2.0 * (b @ a)
        key = f"{name}.weight" if f"{name}.weight" in ours else f"{name.partition('.')[2]}.weight"
        found = ours.pop(key)
        torch.testing.assert_close(found if architecture != "gpt2" else found.T, expected, rtol=1e-5,
                                   atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(found, original[key])
        checked += 1
    assert checked >= 8
    assert any("embed" in name or "wte" in name for name in ours)
    for name, tensor in ours.items():  # embeddings, norms, head, biases: not quantized
        assert torch.equal(tensor, original[name]), name


def test_one_float32_tensor_does_not_make_a_bf16_model_float32(tmp_path: Path) -> None:
    """A merged model takes twice the memory, and runs in another precision, because of one small buffer."""
    base = tiny_models.save_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    tensors = stored(base)
    norm = "model.norm.weight"
    save_file(tensors | {norm: tensors[norm].float()}, base / "model.safetensors", metadata={"format": "pt"})
    merge(adapter, tmp_path / "merged", "--verify", "on")
    merged = stored(tmp_path / "merged")
    assert merged.pop(norm).dtype == torch.float32  # each tensor keeps its own
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16
