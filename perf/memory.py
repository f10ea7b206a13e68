"""Memory to train each of some models: weights, adapter and what a token keeps, without their weights.

A model's layers are alike, so that what a token keeps for the backward pass grows by the same amount a
layer: it is measured, as train.py --dry_run measures it, on models of one and two layers in the full width,
with random weights.  Added up as train.py plans: the weights, the adapter of rank 64 with its gradient and
AdamW's two moments in float32 (16 bytes a parameter), and twice what the tokens of one sequence keep, because
the backward pass needs as much again.  NF4 holds the linear layers but the head: 4 bits a weight, and for
each 64 of them a scale that is quantized to 8 bits itself.

The configurations are written by hand; the number of parameters that comes out is to be that of the model's
card.

Run:    python perf/memory.py
"""
import sys
from typing import Any

from measure import ROOT

sys.path.insert(0, str(ROOT))
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import train
from pipeline.model.device import quiet_libraries
from pipeline.model.mergeable import linear_layers
from pipeline.model.padding import right_padded
from pipeline.training.lora import add_adapters, gelu_in_one_kernel
from pipeline.training.loss import sum_of_losses

TOKENS = 512  # of a sequence, train.py's default
ADAPTER_BYTES = 16  # a parameter: weight, gradient and two moments in float32
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits, a scale a block, a scale of 256 scales


def llama(hidden: int, layers: int, heads: int, inner: int, vocabulary: int, context: int,
          **more: Any) -> Any:
    """Return a configuration of the Llama layout."""
    return "llama", {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                     "intermediate_size": inner, "vocab_size": vocabulary,
                     "max_position_embeddings": context, **more}


def qwen(*sizes: int, **more: Any) -> Any:
    """Return a configuration of Qwen2's layout."""
    return "qwen2", llama(*sizes, tie_word_embeddings=True, **more)[1]


MODELS = {
    "HuggingFaceTB/SmolLM2-135M": llama(576, 30, 9, 1536, 49152, 8192, num_key_value_heads=3,
                                        tie_word_embeddings=True),
    "Qwen/Qwen2.5-Coder-0.5B": qwen(896, 24, 14, 4864, 151936, 32768, num_key_value_heads=2),
    "deepseek-ai/deepseek-coder-1.3b-base": llama(2048, 24, 16, 5504, 32256, 16384),
    "microsoft/phi-1_5": ("phi", llama(2048, 24, 32, 8192, 51200, 2048, partial_rotary_factor=0.5)[1]),
    "Qwen/Qwen2.5-Coder-1.5B": qwen(1536, 28, 12, 8960, 151936, 32768, num_key_value_heads=2),
    "bigcode/starcoder2-3b": ("starcoder2", llama(3072, 30, 24, 12288, 49152, 16384, num_key_value_heads=2,
                                                  use_bias=True, tie_word_embeddings=True,
                                                  hidden_act="gelu_pytorch_tanh")[1]),
    "ibm-granite/granite-3b-code-base-2k": llama(2560, 32, 32, 10240, 49152, 2048, attention_bias=True,
                                                 mlp_bias=True, tie_word_embeddings=True),
}


def make(kind: str, settings: dict[str, Any], device: str, layers: int | None = None) -> Any:
    """Return a model in bf16 with random weights, or on the meta device without any."""
    if layers is not None:
        settings = settings | {"num_hidden_layers": layers}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.bfloat16)


def kept_bytes(kind: str, settings: dict[str, Any], layers: int) -> float:
    """Return what a token keeps for the backward pass in a model of so many layers, in bytes."""
    model = make(kind, settings, "cpu", layers)
    gelu_in_one_kernel(model)  # as train.py's own loading does
    model = add_adapters(model, train.build_parser().parse_args([])).train()
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    ids = torch.randint(0, settings["vocab_size"], (TOKENS,)).tolist()
    batch = right_padded([{"input_ids": ids, "labels": ids}], 0)
    # without autocast, as on a GPU: the adapters choose their dtype themselves
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sum_of_losses(model, model.get_base_model(), batch)
    return sum(size for size, _ in kept.values()) / TOKENS


def main() -> None:
    quiet_libraries()
    print("| model | parameters | adapter | kept a token | bf16 | NF4 |\n|---|---:|---:|---:|---:|---:|")
    for name, (kind, settings) in MODELS.items():
        whole = make(kind, settings, "meta")
        parameters = sum(p.numel() for p in whole.parameters())
        linear = sum(layer.weight.numel() for layer in linear_layers(whole).values())
        adapted = add_adapters(whole, train.build_parser().parse_args([]))
        adapter = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        one, two = (kept_bytes(kind, settings, layers) for layers in (1, 2))
        kept = one + (two - one) * (settings["num_hidden_layers"] - 1)
        besides = ADAPTER_BYTES * adapter + 2 * kept * TOKENS
        sixteen, four = (besides + weights for weights in
                         (2 * parameters, 2 * (parameters - linear) + NF4_BYTES * linear))
        print(f"| {name} | {parameters / 1e6:,.0f} M | {adapter / 1e6:.0f} M | {kept / 1e6:.2f} MB | "
              f"{sixteen / 1e9:.1f} GB | {four / 1e9:.1f} GB |", flush=True)


if __name__ == "__main__":
    main()
