"""How many examples of each set are asked: a default that a patient user of a CPU can wait for."""
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.model.device import choose_device, torch_dtype
from pipeline.model.model_source import ModelSource
from pipeline.model.tokenizers import model_errors
from pipeline.tasks.codexglue import CODEXGLUE_MAX_NEW_TOKENS

SAMPLE, SMALL_SAMPLE = 500, 200  # examples of each set; the latter where the former would take too long
LONG_SECONDS = 30 * 60
EFFICIENCY = 0.35  # of decoding and the losses, as a share of the rate of a matrix product (perf/README.md)
PROMPT_TOKENS = 60  # of a Python prompt, about
SIZE = 1024  # of the matrices that the rate is measured on


def choose_sample(asked: int | None, base: ModelSource, context_tokens: list[int], chunk_tokens: int,
                  precision: str) -> int:
    """Return `asked`, or the default: SAMPLE, but SMALL_SAMPLE where that would take a CPU LONG_SECONDS."""
    if asked is not None or choose_device().type != "cpu":
        return SAMPLE if asked is None else asked
    seconds = SAMPLE * seconds_an_example(base, context_tokens, chunk_tokens, precision)
    return SMALL_SAMPLE if seconds > LONG_SECONDS else SAMPLE


def seconds_an_example(base: ModelSource, context_tokens: list[int], chunk_tokens: int,
                       precision: str) -> float:
    """Return about how long one example of every set takes for both models, on this machine's CPU.

    A text and the loss of its reference are 2 FLOP a parameter and token (Kaplan et al. 2020), of the prompt
    and of the budget.
    """
    sets = [PROMPT_TOKENS + CODEXGLUE_MAX_NEW_TOKENS // 2,  # and of the methods in Kotlin, behind the longest
            max(context_tokens) + PROMPT_TOKENS + CODEXGLUE_MAX_NEW_TOKENS // 2,
            *((c or chunk_tokens) + chunk_tokens for c in context_tokens)]
    return 2 * 2 * sum(sets) * 2 * parameters(base) / (EFFICIENCY * product_rate(precision))


def parameters(source: ModelSource) -> int:
    """Return the number of a model's parameters, from its configuration alone."""
    with model_errors(source.name), torch.device("meta"):
        config = AutoConfig.from_pretrained(source.name, revision=source.commit, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())


def product_rate(precision: str) -> float:
    """Return the FLOP a second of a product of two matrices, the best of some."""
    matrix, best = torch.randn(SIZE, SIZE).to(torch_dtype(precision)), 0.0
    for _ in range(5):
        begun = time.perf_counter()
        matrix @ matrix
        best = max(best, 2 * SIZE**3 / (time.perf_counter() - begun))
    return best
