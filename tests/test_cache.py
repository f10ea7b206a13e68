"""pipeline/evaluation/cache.py: a cache that stays the library's, for it holds something else."""
import pytest
import tiny_models
import torch
from evaluation_runs import free_task, prompts, written_alone
from transformers import AutoModelForCausalLM

from pipeline.evaluation.decoding import generate_batch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rows_leave_a_cache_with_a_sliding_window() -> None:
    """A model with a sliding window writes something else in a batch than alone: its window covers the
    padding, or another row."""
    config = tiny_models.make_model("qwen2").config
    settings = config.to_dict() | {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1,
                                   "layer_types": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(config)(**settings), dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.12)
    tokenizer, rows = tiny_models.make_tokenizer(), prompts(6)
    lengths = iter((3, 9, 5, 16, 12, 7))
    with torch.inference_mode():
        free = [written_alone(model, row, 16) for row in rows]
        ends = {tokenizer.decode(tokens[:next(lengths)]) for tokens in free}
        found = generate_batch(model, tokenizer, rows,
                               free_task(16, lambda text: len(text) if text in ends else None))
    assert [tokenizer.decode(tokens).startswith(result["text"])
            for tokens, result in zip(free, found, strict=True)] == [True] * 6
    assert len({result["tokens"] for result in found}) > 3
