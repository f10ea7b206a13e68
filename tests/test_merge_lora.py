"""merge_lora.py: the merged weights against PEFT's and against float64, and what must be refused before anything is written."""
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from safetensors import safe_open

import merge_lora
from pipeline_io import PipelineError, combined_hash, sha256_file

Tensors = dict[str, Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, a tiny Llama, and `adapter`, an adapter of it."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_models.save_model(folder / "base", "llama")
    tiny_models.save_adapter(folder / "adapter", folder / "base")
    return folder


def merge(adapter: Path, output: Path, *more: object) -> None:
    merge_lora.main([str(part) for part in ("--hf_repository", adapter, "--output_dir", output, "--verify", "off", *more)])


def refusal(capsys: pytest.CaptureFixture, adapter: Path, output: Path, *more: object) -> str:
    """Merge, which has to fail with one line before anything is written, and return that line."""
    before = sorted(output.rglob("*")) if output.exists() else None
    with pytest.raises(SystemExit) as stop:
        merge(adapter, output, *more)
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert "Traceback" not in captured.err
    assert captured.err.count(": error: ") == 1
    assert (sorted(output.rglob("*")) if output.exists() else None) == before
    assert not [p for p in output.parent.iterdir() if ".pipeline-tmp" in p.name]
    return captured.err.splitlines()[-1]


def stored(folder: Path) -> Tensors:
    """Return all tensors of a model folder's files."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()}


def peft_merge(base: Path, adapter: Path, dtype: Any) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter).merge_and_unload()


def exact(base: Path, adapter: Path) -> Tensors:
    """Return the merged matrices in float64, by the formula, from the files alone; the scale is that of config's r and alpha."""
    from safetensors.torch import load_file

    weights = stored(base)
    lora = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    merged = {}
    for name in [n for n in lora if n.endswith(".lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        product = lora[name.replace("lora_A", "lora_B")].double() @ lora[name].double()
        stored_name = next(n for n in weights if n == f"{module}.weight" or n == f"{module.partition('.')[2]}.weight")
        delta = product if weights[stored_name].shape == product.shape and "attn.c_" not in module and "mlp.c_" not in module else product.T
        merged[stored_name] = weights[stored_name].double() + scale * delta
    return merged


CASES = [(architecture, None, {}) for architecture in tiny_models.ARCHITECTURES] + [
    ("llama", True, {}), ("qwen2", True, {}), ("gpt2", False, {}), ("phi", None, {"use_rslora": True}),
    ("llama", None, {"use_rslora": True, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"v_proj": 3}}),
    ("gpt2", None, {"rank_pattern": {"c_fc": 2}, "alpha_pattern": {"h.0.attn.c_attn": 32, "c_proj": 1}}),
    ("qwen2", None, {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"proj": 1, r"model.layers.\d+.self_attn.o_proj": 5}}),
    ("phi", None, {"target_modules": ["q_proj", "fc2"], "r": 1})]


@pytest.mark.parametrize(("architecture", "tied", "lora"), CASES)
def test_merged_model_is_what_peft_merges(architecture: str, tied: bool | None, lora: dict[str, Any], tmp_path: Path) -> None:
    """The published model is not base + adapter: another scale, a transposed matrix, a layer left out."""
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_models.save_model(tmp_path / "base", architecture, tied=tied)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, **lora)
    merge(adapter, tmp_path / "merged")
    expected = peft_merge(base, adapter, torch.float32)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(found, "peft_config")
    ours, theirs = found.state_dict(), expected.state_dict()
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        difference = (found.eval()(ids).logits - expected.eval()(ids).logits).abs().max()
        moved = (AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits - expected.eval()(ids).logits).abs().max()
    assert difference < 1e-4
    assert moved > 0.01
    assert set(stored(tmp_path / "merged")) == set(stored(base))  # a tied head is not stored twice


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["phi", "gpt2"])
def test_rounding_is_no_worse_than_pefts(architecture: str, dtype: str, tmp_path: Path) -> None:
    """The merge loses more to rounding than the usual way: the product is rounded before it is added."""
    import torch

    base = tiny_models.save_model(tmp_path / "base", architecture, dtype=getattr(torch, dtype))
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, std=0.02)
    merge(adapter, tmp_path / "merged")
    truth, ours = exact(base, adapter), stored(tmp_path / "merged")
    theirs = peft_merge(base, adapter, getattr(torch, dtype)).state_dict()
    assert len(truth) >= 8
    for name, expected in truth.items():
        assert ours[name].dtype == getattr(torch, dtype)
        assert torch.equal(ours[name], expected.float().to(ours[name].dtype)) or (ours[name].double() - expected).abs().mean() <= (
            expected.to(ours[name].dtype).double() - expected).abs().mean() * 1.001
        key = name if name in theirs else f"transformer.{name}"
        assert (ours[name].double() - expected).abs().max() <= (theirs[key].double() - expected).abs().max()


@pytest.mark.parametrize(("dtype", "base_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32"),
                                                   ("base", "bfloat16"), ("base", "float32")])
def test_dtype_is_that_of_the_flag(dtype: str, base_dtype: str, tmp_path: Path) -> None:
    """--dtype is ignored, or the configuration says another type than the files have."""
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_models.save_model(tmp_path / "base", "llama", dtype=getattr(torch, base_dtype))
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    merge(adapter, tmp_path / "merged", "--dtype", dtype)
    expected = base_dtype if dtype == "base" else dtype
    merged, truth, plain = stored(tmp_path / "merged"), exact(base, adapter), stored(base)
    assert {tensor.dtype for tensor in merged.values()} == {getattr(torch, expected)}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == expected
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == getattr(torch, expected)
    for name, tensor in merged.items():
        reference = truth.get(name, plain[name].double())
        torch.testing.assert_close(tensor.double(), reference, **({"rtol": 1e-2, "atol": 1e-3} if "16" in expected
                                                                  else {"rtol": 1e-6, "atol": 1e-6}))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_shards_stay_shards(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in several files is merged in part, or needs the memory of the whole model; blocks of rows lose a row."""
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_models.save_model(tmp_path / "base", architecture, max_shard_size="60KB")
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    names = sorted(p.name for p in base.glob("model*.safetensors"))
    assert len(names) > 2
    monkeypatch.setattr(merge_lora, "BLOCK_ELEMENTS", 1000)  # some 15 rows a block
    merge(adapter, tmp_path / "merged")
    assert sorted(p.name for p in (tmp_path / "merged").glob("model*.safetensors")) == names
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    for name, tensor in peft_merge(base, adapter, torch.float32).state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("architecture", "lora"), [
    ("llama", {}), ("gpt2", {}), ("llama", {"target_modules": ["q_proj", "down_proj"]})])
def test_nf4_base_is_what_training_saw(architecture: str, lora: dict[str, Any], tmp_path: Path) -> None:
    """--base nf4 merges into other weights than the adapter was trained on: the head quantized, or a layer not quantized."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors.torch import load_file

    import train

    base = tiny_models.save_model(tmp_path / "base", architecture)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, **lora)
    merge(adapter, tmp_path / "merged", "--base", "nf4", "--verify", "on")
    quantized = train.load_base_model(str(base), None, "nf4", "float32")
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
        torch.testing.assert_close(found if architecture != "gpt2" else found.T, expected, rtol=1e-5, atol=1e-6,
                                   msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(found, original[key])
        checked += 1
    assert checked >= 8
    assert any("embed" in name or "wte" in name for name in ours)
    for name, tensor in ours.items():  # embeddings, norms, head, biases: not quantized
        assert torch.equal(tensor, original[name]), name


def test_merged_folder_is_an_ordinary_model(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The merged folder runs remote code, says it is an adapter, lacks its tokenizer, or discloses paths of this machine."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = shutil.copytree(pair / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"},
                                                  "_name_or_path": "/secret"}))
    merge(pair / "adapter", tmp_path / "merged", "--base_model", base, "--verify", "on")
    output = capsys.readouterr().out
    assert "verified against base + adapter" in output
    assert output.splitlines()[-1].startswith(f"wrote {tmp_path / 'merged'} in ")
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "manifest.json"} <= names
    assert not [name for name in names if name.startswith("adapter")]
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert not {"auto_map", "_name_or_path", "quantization_config"} & set(written)
    assert str(tmp_path) not in (tmp_path / "merged" / "README.md").read_text()
    manifest = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert set(manifest["outputs"]) == names - {"manifest.json"}
    assert manifest["verification"]["top_token_agreement"] >= 0.9
    assert manifest["counts"]["merged_matrices"] == 14
    with safe_open(tmp_path / "merged" / "model.safetensors", "np") as stored:  # a reader can check each merged tensor by itself
        assert {name: hashlib.sha256(stored.get_tensor(name).tobytes()).hexdigest() for name in manifest["merged_tensors"]} == \
            manifest["merged_tensors"]
    assert len(manifest["merged_tensors"]) == 14
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=False)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == tiny_models.END_OF_TEXT


def test_a_second_merge_replaces_the_first(pair: Path, tmp_path: Path) -> None:
    """A run after a new training keeps the old merge, or refuses its own output folder."""
    merge(pair / "adapter", tmp_path / "merged")
    first = (tmp_path / "merged" / "model.safetensors").read_bytes()
    other = tiny_models.save_adapter(tmp_path / "other", pair / "base", seed=9)
    merge(other, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() != first
    merge(pair / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == first


def test_verification_finds_a_wrong_merge(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture) -> None:
    """A merge that leaves the adapter out, or applies it twice, is published as verified."""
    original = merge_lora.merge_rows
    for factor in (0.0, 2.0):
        def wrong(rows: Any, lora: Any, first: int, factor: float = factor) -> Any:
            return original(rows, merge_lora.LoraPair(lora.a, lora.b, lora.scale * factor, lora.module, lora.transposed), first)
        monkeypatch.setattr(merge_lora, "merge_rows", wrong)
        assert "is not base + adapter" in refusal(capsys, pair / "adapter", tmp_path / "merged", "--verify", "on")


# Refusals

@pytest.mark.parametrize(("settings", "named"), [
    ({"use_dora": True}, "use_dora"), ({"bias": "lora_only"}, "bias is 'lora_only'"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"), ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"lora_bias": True}, "lora_bias")])
def test_what_is_not_plain_lora_is_refused(settings: dict[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A part of the adapter is left out of the merge without a word."""
    base = tiny_models.save_model(tmp_path / "base", "qwen2", tied=False)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base, **settings)
    assert named in refusal(capsys, adapter, tmp_path / "merged")


@pytest.mark.parametrize(("change", "named"), [
    ("unknown name", "extra.weight"), ("no lora_B", "has no lora_B"), ("no lora_A", "has no lora_A"), ("ranks", "ranks"),
    ("wrong shape", "is this the right base model?"), ("unknown module", "does not exist"),
    ("not safetensors", "not a whole safetensors file"), ("pickle only", "pickled weights are not loaded"),
    ("no config", "adapter_config.json"), ("not JSON", "not valid JSON"),
    ("other method", "only LORA"), ("both", "side by side")])
def test_damaged_adapters_are_refused(change: str, named: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A damaged or foreign adapter gives a model that is not what was trained, or a traceback."""
    import torch
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(pair / "adapter", tmp_path / "adapter")
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
        tensors[a.replace("q_proj", "z_proj")], tensors[b.replace("q_proj", "z_proj")] = tensors.pop(a), tensors.pop(b)
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
        shutil.copy(pair / "base" / "model.safetensors", adapter)
    assert named in refusal(capsys, adapter, tmp_path / "merged")


def test_a_base_that_has_changed_since_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The folder of the base model holds another model now, of the same shape: the merge is of two that never met."""
    base = tiny_models.save_model(tmp_path / "base", "llama")
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    trained_on = combined_hash({"model.safetensors": sha256_file(base / "model.safetensors")})
    (adapter / "manifest.json").write_text(json.dumps({"manifest_version": 1, "base_model_hash": trained_on, "outputs": {}}))
    command = ["--hf_repository", str(adapter), "--output_dir", str(tmp_path / "merged"), "--verify", "off"]
    merge_lora.main(command)
    tiny_models.save_model(base, "llama", seed=5)
    with pytest.raises(SystemExit) as stop:
        merge_lora.main(command)
    assert stop.value.code == 1
    assert "is not the one that the adapter was trained on" in capsys.readouterr().err
    merge_lora.main([*command, "--base_model", str(base)])


def test_another_base_model_is_refused(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An adapter is merged into a model that it was not trained on."""
    other = tiny_models.save_model(tmp_path / "gpt2", "gpt2")
    assert "is this the right base model?" in refusal(capsys, pair / "adapter", tmp_path / "merged", "--base_model", other)


@pytest.mark.parametrize(("damage", "named"), [
    ("missing", "no such folder"), ("pickled", "pickled weights"), ("torn", "not a whole safetensors"), ("shard", "model-00002"),
    ("adapter", "holds an adapter itself")])
def test_damaged_base_models_are_refused(damage: str, named: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A base model that is not whole is a traceback, or gives a model with weights missing."""
    base = tmp_path / "base"
    if damage == "shard":
        tiny_models.save_model(base, "llama", max_shard_size="60KB")
        next(base.glob("model-00002*")).unlink()
    elif damage != "missing":
        shutil.copytree(pair / "base", base)
        weights = base / "model.safetensors"
        if damage == "pickled":
            weights.rename(base / "pytorch_model.bin")
        elif damage == "torn":
            weights.write_bytes(weights.read_bytes()[:-1000])
        else:
            shutil.copy(pair / "adapter" / "adapter_config.json", base)
    assert named in refusal(capsys, pair / "adapter", tmp_path / "merged", "--base_model", base)


def test_output_beside_an_adapter_is_refused(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Merged weights beside an adapter: a later load applies the adapter a second time."""
    adapter = shutil.copytree(pair / "adapter", tmp_path / "adapter")
    assert "second time" in refusal(capsys, adapter, adapter)
    other = shutil.copytree(pair / "adapter", tmp_path / "other")
    assert "second time" in refusal(capsys, adapter, other)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("long work")
    assert "did not write" in refusal(capsys, adapter, thesis)


def test_a_merged_folder_is_not_merged_again(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Merging what is merged already is a traceback, or looks like a success."""
    merge(pair / "adapter", tmp_path / "merged")
    capsys.readouterr()
    assert "is merged already" in refusal(capsys, tmp_path / "merged", tmp_path / "again")


@pytest.mark.parametrize(("module", "config", "scale"), [
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8}, 2.0),
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}}, 4.0),
    ("model.layers.0.self_attn.q_proj", {"r": 4, "lora_alpha": 8, "rank_pattern": {"proj": 2}}, 2.0),
    ("model.layers.11.mlp.up_proj", {"r": 4, "lora_alpha": 8, "alpha_pattern": {"layers.1.mlp.up_proj": 4}}, 2.0),
    ("model.layers.11.mlp.up_proj", {"r": 4, "lora_alpha": 8, "alpha_pattern": {r"layers\.1\d\..*": 4, "up_proj": 1}}, 1.0)])
def test_scale(module: str, config: dict[str, Any], scale: float) -> None:
    """The adapter is merged with another strength than it was trained with."""
    assert merge_lora.lora_scale(config, module) == scale


def test_adapter_from_elsewhere_does_not_choose_a_local_base() -> None:
    """A downloaded adapter redirects the merge to a path on this machine."""
    from argparse import Namespace

    arguments = Namespace(base_model=None, hf_repository="owner/adapter")
    with pytest.raises(PipelineError, match="--base_model"):
        merge_lora.choose_base(arguments, {"base_model_name_or_path": "/etc/model"}, Path("x"))
    with pytest.raises(PipelineError, match="--base_model"):
        merge_lora.choose_base(arguments, {"base_model_name_or_path": None}, Path("x"))
    config = {"base_model_name_or_path": "owner/base", "revision": "abc"}
    assert merge_lora.choose_base(arguments, config, Path("x")) == ("owner/base", "abc")
