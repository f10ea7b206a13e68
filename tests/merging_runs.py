"""Runs of merge_lora.py, and what they write: what the tests of stage 4 share."""
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import merge_lora


def merge(adapter: Path, output: Path, *more: object) -> None:
    """Merge the adapter into its base model; what stands in `more` comes last and wins."""
    arguments = ("--hf_repository", adapter, "--output_dir", output, "--verify", "off", *more)
    merge_lora.main([str(part) for part in arguments])


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


def stored(folder: Path) -> dict[str, Any]:
    """Return all tensors of a model folder's files."""
    return {name: tensor for file in sorted(folder.glob("model*.safetensors"))
            for name, tensor in load_file(file).items()}


def peft_merge(base: Path, adapter: Path, dtype: Any) -> Any:
    """Return the model that PEFT makes of a base model and an adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
