"""pipeline/evaluation/sets.py: budgets, within what the models have positions for."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from evaluation_runs import free_task, run_stage
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.evaluation.sets import fit_budgets
from pipeline.model.model_source import ModelSource

pytestmark = pytest.mark.usefixtures("one_thread")


def short_model(folder: Path, positions: int) -> Path:
    """Save a tiny model with a tokenizer and so many positions, and return its folder."""
    tokenizer = tiny_models.make_tokenizer()
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=2,
                                  n_positions=positions, eos_token_id=0, bos_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_budget_that_leaves_no_prompt_shrinks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A model with a short context cannot be compared at all: the Python set's budget is larger than it; or
    a budget that fits is changed."""
    long, short = (ModelSource(str(short_model(tmp_path / str(number), number)), "") for number in (96, 32))
    adapter = ModelSource(str(tmp_path / "adapter"), "", adapter=str(tmp_path / "adapter"))
    capsys.readouterr()
    for sources, budget, expected in (([long, short], 256, 16), ([long, adapter], 256, 48),
                                     ([long, short], 31, 31), ([long, short], 32, 16), ([long], 95, 95)):
        task = free_task(budget)
        fit_budgets([task], sources)
        assert task.max_new_tokens == expected
        notes = capsys.readouterr().err.splitlines()
        assert len(notes) == (budget != expected)
        if notes:
            assert notes[0].startswith(f"note: Free: a budget of {budget} new tokens leaves no room")


def test_a_benchmark_of_models_with_32_positions(folders: SimpleNamespace, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture) -> None:
    """The benchmark of a model with a short context ends in an error after the first model was loaded."""
    model = short_model(tmp_path / "short", 32)
    metrics = run_stage(folders, tmp_path / "results", "--base_model", model, "--hf_repository", model,
                        "--sample", 3)
    assert "budget:16" in metrics["sets"]["Python stand-in"]["signature"]
    assert "note: Python stand-in: a budget of 256 new tokens leaves no room" in capsys.readouterr().err
    assert set(metrics["sets"]) >= {"Python stand-in", "Kotlin"}
