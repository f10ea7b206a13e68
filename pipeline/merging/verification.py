"""The proof: base + adapter against the merged model as it is loaded from disk."""
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.merging.adapter import TokenRows
from pipeline.merging.adapter_tokenizer import proof_prompts
from pipeline.merging.lora_merge import Targets, dequantized_nf4
from pipeline.model.weight_files import StoredTensor
from pipeline.run.errors import PipelineError

# What the merge is checked on, and how far it may be off.  A model of 135M parameters that is merged and run
# in bf16 has a KL of 0.002 (measured); the bounds are to catch an adapter that is left out, or applied twice,
# not to grade rounding.
VERIFY_PROMPTS = (
    "package demo\n\nimport kotlin.math.max\n\nclass Counter(private val limit: Int) {\n"
    "    private var value = 0\n\n    fun add(n: Int",
    "/** Returns the longest of the given words. */\nfun longest(words: List<String>): String? =\n"
    "    words.maxByOrNull",
    "def mean(values):\n    \"\"\"Return the arithmetic mean of the values.\"\"\"\n    if not values:\n"
    "        raise ValueError",
)
MAX_KL, MIN_AGREEMENT = 0.02, 0.9


def enough_memory_to_verify(shards: list[list[StoredTensor]]) -> bool:
    """Return whether the model in float32, with as much again to spare, fits into the free memory."""
    elements = sum(t.size // t.dtype.itemsize for shard in shards for t in shard)
    return 2 * 4 * elements < psutil.virtual_memory().available


def with_trained_tokens(prompts: list[list[int]], targets: Targets) -> list[list[int]]:
    """Return the prompts and, where embeddings were trained, the same with these tokens in them."""
    tokens = next((found.tokens for found in targets.values() if isinstance(found, TokenRows)), [])
    size = len(tokens)
    marked = [[part for i, token in enumerate(tokens)
               for part in (token, *ids[i * len(ids) // size:(i + 1) * len(ids) // size])] for ids in prompts]
    return prompts + (marked if tokens else [])


def verify(base: Path, adapter: Path, merged: Path, targets: Targets,
           shards: list[list[StoredTensor]], nf4: bool) -> dict[str, float]:
    """Compare base + adapter, in float32, with the merged model as it is loaded from disk, on VERIFY_PROMPTS,
    and where embeddings were trained on these with their tokens too.

    Returns the largest difference of a logit, the share of positions with the same top token, and the mean KL
    divergence in nats.  Raises PipelineError above MAX_KL or below MIN_AGREEMENT: rounding to bf16 alone
    stays far within both.
    """
    texts = proof_prompts(base, merged, list(VERIFY_PROMPTS))
    prompts = [torch.tensor([ids]) for ids in with_trained_tokens(texts, targets)]

    def log_probabilities(model: Any) -> list[Any]:
        with torch.inference_mode():
            return [model.eval()(input_ids=ids).logits[0].float() for ids in prompts]

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False,
                                                 use_safetensors=True)
    if nf4:
        parameters = {name.removesuffix(".weight"): parameter for name, parameter in model.named_parameters()}
        quantized = {name for name, pair in targets.items() if pair.quantized}
        for tensor in (t for shard in shards for t in shard if t.name in quantized):
            with open(tensor.file, "rb") as stream, torch.no_grad():
                pair = targets[tensor.name]
                parameters[pair.module].copy_(dequantized_nf4(tensor, stream, pair.transposed))
    expected = log_probabilities(PeftModel.from_pretrained(model, adapter))
    model = AutoModelForCausalLM.from_pretrained(merged, dtype="auto", trust_remote_code=False,
                                                 use_safetensors=True)
    found = log_probabilities(model)
    a, b = torch.cat(expected), torch.cat(found)
    divergence = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True,
                                            reduction="batchmean").item()
    proof = {"max_logit_difference": round((a - b).abs().max().item(), 5),
             "top_token_agreement": round((a.argmax(-1) == b.argmax(-1)).float().mean().item(), 4),
             "kl_nats": round(max(0.0, divergence), 6)}
    if not divergence <= MAX_KL or proof["top_token_agreement"] < MIN_AGREEMENT:
        raise PipelineError(f"the merged model is not base + adapter: {proof}, allowed are kl_nats up to "
                            f"{MAX_KL} and top_token_agreement from {MIN_AGREEMENT}; nothing was written or "
                            "published. Try --dtype float32")
    return proof
