"""pipeline/merging/weights.py: a base model's files, in blocks of rows."""
import json
from pathlib import Path

import pytest
import tiny_models
import torch
from merging_runs import merge, peft_merge
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pipeline.merging import weights
from pipeline.model.weight_files import list_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_shards_stay_shards(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in several files is merged in part, or needs the memory of the whole; blocks lose a row."""
    base = tiny_models.save_model(tmp_path / "base", architecture, max_shard_size="60KB")
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    names = sorted(p.name for p in base.glob("model*.safetensors"))
    assert len(names) > 2
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 1000)  # some 15 rows a block
    merge(adapter, tmp_path / "merged")
    assert sorted(p.name for p in (tmp_path / "merged").glob("model*.safetensors")) == names
    before, after = (json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
                     for folder in (base, tmp_path / "merged"))
    assert after == before
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    for name, tensor in peft_merge(base, adapter, torch.float32).state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


def test_every_tensor_is_read_whole_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is read at another place, a type is taken for another one, or a scalar or no rows break it."""
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): (torch.arange(7 * 6).reshape(7, 6) % 2).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(0.5), "no rows": torch.zeros(0, 3), "one": torch.ones(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 20)
    stored = list_tensors(tmp_path / "model.safetensors")
    assert {tensor.name for tensor in stored} == set(tensors)
    with open(tmp_path / "model.safetensors", "rb") as stream:
        for tensor in stored:
            expected = tensors[tensor.name]
            blocks = list(weights.read_rows(tensor, stream))
            assert len(blocks) == (0 if tensor.name == "no rows" else 3 if expected.ndim == 2 else 1)
            assert [first for first, _ in blocks] == list(range(0, len(blocks) * 3, 3))
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
            assert torch.equal(torch.cat([rows for _, rows in blocks] or [expected]).reshape(expected.shape),
                               expected)
