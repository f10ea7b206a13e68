"""The model that is trained: a frozen base, quantized or not, and LoRA inside its matrix products."""
import argparse
import contextlib
import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.bnb import Linear4bit
from torch._functorch import config as compiler_settings
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from pipeline.hub.client import hub_files
from pipeline.model.device import check_tokens_known, choose_device, torch_dtype
from pipeline.model.mergeable import (
    base_tensors,
    check_plain_lora,
    has_tied_head,
    linear_layers,
    loaded_folder,
    stored_embeddings,
    stored_weight,
)
from pipeline.model.tokenizers import check_local_model, model_errors
from pipeline.run.errors import PipelineError
from pipeline.training.token_rows import fuse_token_rows


def load_base_model(name: str, revision: str | None, quantization: str, precision: str) -> Any:
    """Return the frozen base model; nf4 quantizes its linear layers to 4 bits (Dettmers et al. 2023)."""
    dtype, device = torch_dtype(precision), choose_device()
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=dtype) if quantization == "nf4" else None
    check_local_model(name)
    with model_errors(name):
        if not Path(name).is_dir() and not any(file.endswith(".safetensors")
                                               for file in hub_files(name, revision)[1]):
            raise PipelineError(f"model {name}: holds no safetensors file; pickled weights are not loaded")
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype, quantization_config=config, trust_remote_code=False,
            use_safetensors=True, device_map=None if device.type == "cpu" else {"": device})
    model.config.use_cache = False
    gelu_in_one_kernel(model)
    return model.requires_grad_(False)


def gelu_in_one_kernel(model: Any) -> None:
    """Replace the activations that write GELU's tanh form (Hendrycks and Gimpel 2016) as a formula by torch's
    own.

    The formula is eight kernels, whose results are all kept for the backward pass, and its third power
    overflows in fp16.  In float32 the two are 5e-7 apart.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def target_layers(model: Any, targets: list[str]) -> list[str]:
    """Return the names of the modules that --lora_target_modules asks for; PipelineError where a name has
    nothing behind it, or what takes no adapter."""
    layers = linear_layers(model)
    there = ", ".join(sorted({re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name)[0] for name in layers}))
    if "all-linear" in targets:
        if len(targets) > 1:
            raise PipelineError(f"--lora_target_modules {' '.join(targets)}: all-linear stands for every "
                                "linear layer but the head; give it alone, or names alone")
        plain = plain_names(model) if frozen_experts(model) else None
        return [name for name in layers if plain is None or name.rpartition(".")[2] in plain]
    head, chosen = model.get_output_embeddings(), []
    for target in targets:
        found = {name: module for name, module in model.named_modules()
                 if name == target or name.endswith(f".{target}")}
        if not found:
            experts = any(f".{name}".endswith(f".{target}") for name, _ in model.named_parameters())
            what = "is a parameter and no layer, and its adapter could not be merged" if experts else \
                "is the name of no layer"
            raise PipelineError(f"--lora_target_modules {target}: {what}; there are {there}, and all-linear "
                                "for all of them")
        for name, module in found.items():
            if module is head:
                raise PipelineError(f"--lora_target_modules {target}: is the output head, which stays as it "
                                    f"is; name other layers ({there}), or all-linear")
            if name not in layers:
                raise PipelineError(f"--lora_target_modules {target}: {name} is of type "
                                    f"{type(module).__name__}, and only adapters of linear layers can be "
                                    f"merged; there are {there}, and all-linear for all of them")
        chosen += found
    return chosen


def check_mergeable(model: Any, args: argparse.Namespace, trained_tokens: tuple[int, ...] = ()) -> None:
    """Raise PipelineError where merge_lora.py could not merge the adapter that would be trained, by its own
    code: a layer's weight is not in the files of the base model, or those of `trained_tokens` are not."""
    name = args.model_name_or_path
    folder = loaded_folder(name, args.model_revision)
    stored = {tensor.name: tensor for tensors in base_tensors(folder, name) for tensor in tensors}
    for module in target_layers(model, args.lora_target_modules):
        stored_weight(module, model, stored, folder)
    if trained_tokens:
        stored_embeddings(model, stored, folder)


def plain_names(model: Any) -> set[str]:
    """Return the last parts of the names of linear layers that mean only layers to PEFT.  Where experts lie
    in one tensor, it takes names that they once had, such as gate_proj, for those of their parameters."""
    config = copy.copy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):  # tried on a model without memory, which each try changes
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    plain = set()
    for name in {name.rpartition(".")[2] for name in linear_layers(model)}:
        with contextlib.suppress(ValueError):  # half of what lies in one tensor
            tried = get_peft_model(copy.deepcopy(empty), LoraConfig(target_modules=[name]))
            if not tried.peft_config["default"].target_parameters:
                plain.add(name)
    return plain


def frozen_experts(model: Any) -> int:
    """Return the number of experts' parameters without an adapter: those of all experts in one tensor, which
    `all-linear` passes over."""
    convolutions = {f"{name}.weight" for name, module in model.named_modules()
                    if isinstance(module, torch.nn.modules.conv._ConvNd)}
    return sum(p.numel() for name, p in model.named_parameters()
               if not p.requires_grad and ".base_layer." not in name and name not in convolutions
               and (p.ndim == 3 or (p.ndim == 2 and "experts." in name)))


def make_model(args: argparse.Namespace, precision: str, tokenizer: Any, highest_token: int,
               trained_tokens: tuple[int, ...] = ()) -> Any:
    """Return the base model with the adapters that are trained, after asking whether they can be merged and
    whether the model knows the tokens of the data.

    `trained_tokens`: those whose embeddings are trained too; where the head is tied to the embedding, that of
    the end of text with them.
    """
    base = load_base_model(args.model_name_or_path, args.model_revision, args.quantization, precision)
    check_tokens_known(base, tokenizer, highest_token)
    # what was never read within code is hard to learn for adapters below a frozen head (see perf/log/)
    if trained_tokens and has_tied_head(base):
        trained_tokens = (*trained_tokens, tokenizer.eos_token_id)
    check_mergeable(base, args, trained_tokens)
    return add_adapters(base, args, trained_tokens)


def add_adapters(model: Any, args: argparse.Namespace, trained_tokens: tuple[int, ...] = ()) -> Any:
    """Return the model with LoRA adapters (Hu et al. 2021) in float32, and the embeddings of
    `trained_tokens` with them.

    By default they are on every linear layer but the head.
    """
    targets = args.lora_target_modules
    layers = target_layers(model, targets)
    names: Any = targets[0] if targets == ["all-linear"] else targets
    if targets == ["all-linear"] and frozen_experts(model):
        names = sorted({name.rpartition(".")[2] for name in layers})
    config = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha or 2 * args.lora_r,
                        lora_dropout=args.lora_dropout, use_rslora=args.use_rslora, task_type="CAUSAL_LM",
                        target_modules=names, trainable_token_indices=list(trained_tokens) or None)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        named = f"--lora_target_modules {' '.join(targets)}"
        raise PipelineError(f"{named}: {str(error).splitlines()[0]}") from error
    # what PEFT has made of the names for this architecture, such as adapters of experts' parameters
    check_plain_lora(adapted.peft_config["default"].to_dict(), f"--lora_target_modules {' '.join(targets)}")
    fuse_adapters(adapted)
    fuse_token_rows(adapted)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    if args.torch_compile:
        # a weight in 4 bits is made in 16 for the forward pass and again for the backward pass: taken for one
        # expression, it would be kept in between
        compiler_settings.cse = args.quantization != "nf4"
        # block by block: all blocks are alike, so that one is compiled for all
        for module in model.modules():
            if type(module).__name__ in (model._no_split_modules or ()):
                module.compile(dynamic=True)
    return adapted


def checkpoint_activations(model: Any) -> None:
    """Let the model keep its blocks' inputs alone and compute all else a second time (Chen et al. 2016)."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class LoraProduct(torch.autograd.Function):
    """x W' + s x A' B' (Hu et al. 2021), and its gradients of x, A and B.

    x is (tokens, in), W (out, in), A (r, in), B (out, r).  The adapter's part is added within the matrix
    product (addmm), forward and backward: PEFT's own sequence of products, casts, scaling and sums reads and
    writes tensors of the layer's size six more times.  `weight` is called for W, in the backward pass too: a
    weight in 4 bits is there in 16 bits for no longer than its product.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, a: Any, b: Any, scaling: float, weight: Callable[[], Any],
                bias: Any) -> Any:
        low_a, low_b = a.to(x.dtype), (b * scaling).to(x.dtype)
        inner = x @ low_a.T
        result = torch.nn.functional.linear(x, weight(), bias).addmm_(inner, low_b.T)
        ctx.save_for_backward(x, inner, low_a, low_b)
        ctx.scaling, ctx.weight, ctx.adapter_dtype = scaling, weight, a.dtype
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
        x, inner, low_a, low_b = ctx.saved_tensors
        inner_gradient = gradient @ low_b
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ ctx.weight()).addmm_(inner_gradient, low_a)
        of_a = (inner_gradient.T @ x).to(ctx.adapter_dtype)
        of_b = (gradient.T @ inner).to(ctx.adapter_dtype) * ctx.scaling
        return of_x, of_a, of_b, None, None, None


def frozen_weight(layer: Any, dtype: Any) -> Any:
    """Return the weight of a linear layer, as (out, in) in `dtype`, whatever form it is kept in."""
    if type(layer).__name__ == "Linear4bit":
        return dequantize_4bit(layer.weight, layer.weight.quant_state).to(dtype)
    weight = layer.weight.to(dtype)
    # Conv1D: GPT-2's linear layer, kept as (in, out)
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def fuse_adapters(model: Any) -> None:
    """Let the layers with a plain adapter, one without dropout, compute it by `LoraProduct`.

    The others are left to PEFT.  `all_fused` tells whether there are any.
    """
    def fuse(layer: Any, name: str) -> None:
        peft_forward, base = layer.forward, layer.get_base_layer()

        def forward(x: Any) -> Any:
            if layer.disable_adapters or layer.merged:
                return peft_forward(x)
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            with torch.autocast(kind, enabled=False):
                rows = x.reshape(-1, x.shape[-1]).to(dtype)
                result = LoraProduct.apply(
                    rows, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name],
                    functools.partial(frozen_weight, base, dtype),
                    None if base.bias is None else base.bias.to(dtype))
            return result.view(*x.shape[:-1], -1)

        layer.forward = forward

    for layer in model.modules():
        if type(layer) not in (Linear, Linear4bit) or len(layer.lora_A) != 1:
            continue
        name = next(iter(layer.lora_A))
        plain = isinstance(layer.lora_dropout[name], torch.nn.Identity) and layer.lora_B[name].bias is None
        if plain and not layer.lora_variant and isinstance(layer.get_base_layer(), (torch.nn.Linear, Conv1D)):
            fuse(layer, name)


def all_fused(model: Any) -> bool:
    """Return whether every adapter is computed by `LoraProduct`, in the dtype of its layer's input; PEFT's
    own computation is in the adapter's float32."""
    return all("forward" in vars(layer) for layer in model.modules() if isinstance(layer, LoraLayer))


def evaluation_mode(model: Any) -> Any:
    """Return the model in evaluation mode, all but its NF4 layers, for which it means only one thing.

    On some CPUs bitsandbytes packs their weights for inference in evaluation mode and leaves them so;
    gradients no longer pass through them, and most adapters learn nothing (seen: bitsandbytes 0.50.2, AVX-512
    with bf16).
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and type(module).__name__ == "Linear4bit":
            module.train()
    return model
