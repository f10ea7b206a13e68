"""pipeline/evaluation/sample_size.py: how many examples are asked where nobody says it."""
import time
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from pipeline.evaluation import sample_size
from pipeline.evaluation.sample_size import (
    LONG_SECONDS,
    SAMPLE,
    choose_sample,
    parameters,
    product_rate,
    seconds_an_example,
)
from pipeline.model.model_source import ModelSource
from pipeline.run.errors import PipelineError


@pytest.fixture
def base(model_folder: Path) -> ModelSource:
    """A tiny base model."""
    return ModelSource(str(model_folder), "identity")


@pytest.mark.parametrize(("asked", "rate", "gpu", "sample"), [
    (None, 1e3, False, 200), (None, 1e15, False, 500), (None, 1e3, True, 500), (7, 1e3, False, 7),
    (700, 1e15, True, 700), (0, 1e3, False, 0), (500, 1e3, False, 500)])
def test_a_slow_cpu_gets_a_smaller_sample(asked: int | None, rate: float, gpu: bool, sample: int,
                                          base: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first run takes hours on a laptop; or a number that the user gave is not his."""
    monkeypatch.setattr(sample_size, "product_rate", lambda precision: rate)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_sample(asked, base, [0, 512], 100, "float32") == sample


def test_half_an_hour_is_where_the_sample_becomes_smaller(base: ModelSource,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """The help's half an hour is some other time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = []
    for seconds in (LONG_SECONDS + 1, LONG_SECONDS - 1):
        monkeypatch.setattr(sample_size, "seconds_an_example", lambda *args, s=seconds: s / SAMPLE)
        found.append(choose_sample(None, base, [0, 512], 100, "float32"))
    assert LONG_SECONDS == 1800
    assert found == [200, 500]


def test_time_grows_with_contexts_and_the_budget(base: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context of thousands of tokens is taken for one chunk, and the run for a short one."""
    monkeypatch.setattr(sample_size, "product_rate", lambda precision: 1e9)
    chunk, both, long, budget = (seconds_an_example(base, contexts, tokens, "float32") for contexts, tokens in
                                 (([0], 100), ([0, 512], 100), ([0, 4096], 100), ([0, 512], 400)))
    assert chunk < both < budget < long
    size = parameters(base)
    assert both - chunk == pytest.approx(2 * 2 * (612 + 512) * 2 * size / (sample_size.EFFICIENCY * 1e9))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_parameters_are_counted_without_the_weights(architecture: str, tmp_path: Path) -> None:
    """The size of the model is another one, or its weights are read twice."""
    tiny_models.save_model(tmp_path, architecture)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters()
    (tmp_path / "model.safetensors").unlink()
    assert parameters(ModelSource(str(tmp_path), "identity")) == expected


def test_a_damaged_configuration_is_one_line(tmp_path: Path) -> None:
    """A base model that cannot be loaded costs a traceback."""
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PipelineError, match=r"cannot be loaded|config\.json"):
        parameters(ModelSource(str(tmp_path), "identity"))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_rate_is_measured_in_a_moment(precision: str) -> None:
    """The machine's rate is off by orders of magnitude, or takes longer than the examples that it saves."""
    begun = time.monotonic()
    assert 1e7 < product_rate(precision) < 1e15
    assert time.monotonic() - begun < 30
