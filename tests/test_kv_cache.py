"""pipeline/decoding/kv_cache.py: a cache that stays the library's, for it holds something else."""
from functools import cache
from typing import Any

import pytest
import tiny_models
import torch
from evaluation_runs import free_task, prompts, written_alone
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.decoding.greedy import generate_batch
from pipeline.decoding.kv_cache import rows_can_leave
from pipeline.evaluation.losses import batch_losses

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


MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8,
         "mamba_chunk_size": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "head_dim": 16,
          "linear_value_head_dim": 16, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}
# what the batches of these models cannot do: their states took padding in, or they have no cache
ONE_LENGTH: dict[str, dict[str, Any]] = {
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                            "shared_expert_intermediate_size": 32},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0,
                                 "shared_intermediate_size": 64},
    "jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "head_dim": 16},  # both in one layer
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 32, "head_dim": 16},
    "mamba": {"state_size": 8},
    "openai-gpt": {"n_positions": tiny_models.CONTEXT, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                   "attn_pdrop": 0.0}}
LEAVING: dict[str, dict[str, Any]] = {
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
    "llama4_text": {"head_dim": 16, "intermediate_size_mlp": 128, "num_local_experts": 2,
                    "num_experts_per_tok": 1, "attention_chunk_size": 16}}
KINDS = ONE_LENGTH | LEAVING


@cache
def model_of(kind: str) -> Any:
    """Return a random model of a kind that `tiny_models` has not."""
    common = {"vocab_size": len(tiny_models.make_tokenizer()), "hidden_size": 64, "num_hidden_layers": 4,
              "num_attention_heads": 4, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": None}
    if kind not in ("openai-gpt", "mamba"):
        common |= {"intermediate_size": 128, "num_key_value_heads": 2,
                   "max_position_embeddings": tiny_models.CONTEXT}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **common | KINDS[kind]),
                                             dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "conv" not in name and "A_log" not in name:
                parameter.normal_(std=0.12)
    model.tie_weights()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_kind_of_cache(kind: str) -> None:
    """The benchmark of a model with linear attention, of a hybrid or of one without a cache ends in a
    traceback at the first row that ends before the others; or a row's state is left to another row."""
    model, tokenizer = model_of(kind), tiny_models.make_tokenizer()
    assert rows_can_leave(model) == (kind in LEAVING)
    rows = [*prompts(4), prompts(1)[0][::-1]]  # two of one length, which are decoded together
    with torch.inference_mode():
        free = [written_alone(model, row, 12) for row in rows]
        # ends within the rows, at different steps
        ends = {tokenizer.decode(tokens[:3 + 2 * number]) for number, tokens in enumerate(free[:4])}
        found = generate_batch(model, tokenizer, rows, free_task(12, lambda text: len(text) if text in ends
                                                                 else None))
    for tokens, result in zip(free, found, strict=True):
        ended = tokens.index(0) if 0 in tokens else len(tokens)
        first = next((n for n in range(1, ended + 1) if tokenizer.decode(tokens[:n]) in ends), ended)
        assert result == {"text": tokenizer.decode(tokens[:first]), "tokens": first,
                          "ended": first < 12 or tokenizer.decode(tokens[:first]) in ends}
    assert len({result["tokens"] for result in found}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_loss_in_a_batch_is_that_of_the_example_alone(kind: str) -> None:
    """Padding gets into the state of a recurrent model: its loss depends on what stands beside an
    example."""
    model, rows = model_of(kind), [(row, row[:5 + number]) for number, row in enumerate(prompts(4))]
    with torch.inference_mode():
        found = batch_losses(model, rows)
        for (prompt, completion), (nats, tokens) in zip(rows, found, strict=True):
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1]
            expected = torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
            assert (nats, tokens) == (pytest.approx(expected.item(), abs=1e-4), len(completion))


def test_the_library_decodes_with_our_settings_alone() -> None:
    """A model whose own settings hold a penalty is compared otherwise decoded than the other; or these
    settings are lost."""
    model, tokenizer, rows = model_of("qwen3_5_text"), tiny_models.make_tokenizer(), prompts(2)
    with torch.inference_mode():
        plain = generate_batch(model, tokenizer, rows, free_task(12))
        model.generation_config.repetition_penalty = 5.0
        try:
            assert generate_batch(model, tokenizer, rows, free_task(12)) == plain
            assert model.generation_config.repetition_penalty == 5.0
        finally:
            model.generation_config.repetition_penalty = None
