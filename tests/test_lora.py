"""pipeline/training/lora.py: where adapters are, and that they compute what PEFT computes."""
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from merging_runs import merge
from torch._functorch import config as compiler_settings
from training_runs import command, encoded_rows
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import train
from pipeline.model.padding import right_padded
from pipeline.run.errors import PipelineError
from pipeline.training.lora import add_adapters, evaluation_mode, frozen_experts, load_base_model
from pipeline.training.loss import sum_of_losses

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_every_linear_layer_but_the_head_gets_an_adapter(architecture: str) -> None:
    """Layers are left without an adapter (GPT-2's Conv1D), or the head gets one and cannot be merged."""
    model = tiny_models.make_model(architecture).requires_grad_(False)
    linear = {name for name, module in model.named_modules()
              if isinstance(module, (torch.nn.Linear, Conv1D))} - {"lm_head"}
    adapted = add_adapters(model, train.build_parser().parse_args(["--lora_r", "4"]))
    found = {name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
             for name, _ in adapted.named_modules() if name.endswith(".lora_A.default")}
    assert found == linear
    assert len(linear) >= 8
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    assert all(p.dtype == torch.float32 for p in adapted.parameters() if p.requires_grad)
    assert adapted.peft_config["default"].lora_alpha == 8  # twice the rank, unless it is given


def adapters(model: Any, *flags: str) -> Any:
    """Return the model with the adapters that these flags of train.py ask for."""
    args = train.build_parser().parse_args(["--lora_r", "4", *flags])
    return add_adapters(model.requires_grad_(False), args)


@pytest.mark.parametrize(("targets", "named"), [
    (["q_proj", "v_porj"], "v_porj: is the name of no layer; there are down_proj, gate_proj, k_proj, o_proj, "
                           "q_proj, up_proj, v_proj, and all-linear"),
    (["all-linear", "q_proj"], "all-linear stands for every linear layer"),
    (["q_proj", "embed_tokens"], "model.embed_tokens is of type Embedding"),
    (["mlp"], "model.layers.0.mlp is of type LlamaMLP"), (["lm_head"], "is the output head"),
    (["model.lm_head"], "is the name of no layer"), (["proj"], "is the name of no layer")])
def test_a_name_that_stands_for_no_linear_layer_is_an_error(targets: list[str], named: str) -> None:
    """A misspelt layer beside a right one is left out without a word, or what is trained cannot be merged."""
    with pytest.raises(PipelineError, match=re.escape(named)):
        adapters(tiny_models.make_model("llama"), "--lora_target_modules", *targets)


def test_names_of_layers_and_of_one_layer_are_taken() -> None:
    """A valid --lora_target_modules is refused."""
    for targets, number in ((["q_proj", "down_proj"], 4), (["model.layers.1.mlp.up_proj"], 1),
                            (["1.mlp.up_proj", "k_proj"], 3), (["all-linear"], 14)):
        model = adapters(tiny_models.make_model("llama"), "--lora_target_modules", *targets)
        assert sum(hasattr(layer, "lora_A") for layer in model.modules()) == number
        assert frozen_experts(model) == 0


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe"])
def test_experts_that_stay_frozen_are_counted(architecture: str, tmp_path: Path, dataset_folder: Path,
                                              capsys: pytest.CaptureFixture) -> None:
    """Of a mixture of experts, the greater part is not trained, and nobody is told; or they are adapted, and
    cannot be merged."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 512, "moe_intermediate_size": 128,
             "num_local_experts" if architecture == "mixtral" else "num_experts": 4,
             "vocab_size": len(tiny_models.make_tokenizer())}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes))
    model.save_pretrained(tmp_path / "base")
    tiny_models.make_tokenizer().save_pretrained(tmp_path / "base")
    assert frozen_experts(model.requires_grad_(False)) == 2 * 4 * 3 * 64 * 128
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert experts == 2 * 4 * 3 * 64 * 128
    with pytest.raises(PipelineError, match="gate_up_proj: is a parameter and no layer"):
        adapters(model, "--lora_target_modules", "q_proj", "gate_up_proj")
    train.main(command(tmp_path / "base", dataset_folder, tmp_path / "adapter", "--max_steps", 1))
    assert f"({experts:,} parameters of experts stay as they are)" in capsys.readouterr().out
    merge(tmp_path / "adapter", tmp_path / "merged", "--verify", "on")


@pytest.mark.parametrize(("flag", "value"), [
    ("--learning_rate", "0"), ("--learning_rate", "nan"), ("--learning_rate", "-1e-3"),
    ("--learning_rate", "inf"), ("--num_train_epochs", "0"), ("--num_train_epochs", "inf"),
    ("--tokens_per_batch", "0"), ("--sequence_tokens", "0"), ("--max_length", "0")])
def test_numbers_that_train_nothing_are_refused_by_the_parser(flag: str, value: str,
                                                              capsys: pytest.CaptureFixture) -> None:
    """A run of nothing ends as a success, or in a traceback after the model has been loaded."""
    with pytest.raises(SystemExit) as stop:
        train.build_parser().parse_args([f"{flag}={value}"])
    assert stop.value.code == 2
    assert f"argument {flag}: {value} is not" in capsys.readouterr().err


@pytest.mark.parametrize(("architecture", "quantization"),
                         [*((name, "none") for name in tiny_models.ARCHITECTURES), ("llama", "nf4")])
def test_fused_adapters_compute_what_peft_computes(architecture: str, quantization: str,
                                                   tmp_path: Path) -> None:
    """What is trained is another function than what PEFT loads and merges, or its gradients are wrong."""
    folder = tiny_models.save_model(tmp_path / "model", architecture)
    args = train.build_parser().parse_args(["--lora_r", "4", "--lora_alpha", "12", "--use_rslora"])
    base = load_base_model(str(folder), None, quantization, "float32").train()
    batch = right_padded(encoded_rows(), tiny_models.make_tokenizer().eos_token_id)
    base_loss = sum_of_losses(base, base, batch).item()
    model = add_adapters(base, args).train()
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    assert layers
    assert all("forward" in vars(layer) for layer in layers)  # every layer is fused
    for layer in layers:
        # zero at first, where no gradient of A could be seen
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)

    def result() -> tuple[float, dict[str, Any]]:
        model.zero_grad()
        loss = sum_of_losses(model, model.get_base_model(), batch)
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    fused_loss, fused = result()
    with torch.no_grad(), model.disable_adapter():
        without_adapter = sum_of_losses(model, model.get_base_model(), batch).item()
    assert without_adapter == pytest.approx(base_loss, rel=1e-6)
    for layer in layers:
        del layer.forward  # PEFT's own again
    peft_loss, expected = result()
    assert fused_loss == pytest.approx(peft_loss, rel=1e-5)
    assert fused_loss != pytest.approx(base_loss, rel=1e-4)
    assert len(expected) == 2 * len(layers)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(fused[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item(),
                                   msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("quantization", "merged"), [("nf4", False), ("none", True)])
def test_compiled_blocks_make_a_weight_in_4_bits_twice(quantization: str, merged: bool) -> None:
    """With --torch_compile, every weight stays in 16 bits from the forward to the backward pass: for the
    compiler, two that are computed alike are one."""
    adapters(tiny_models.make_model("llama"), "--torch_compile", "--quantization", quantization)
    assert compiler_settings.cse == merged


def test_adapters_with_dropout_are_left_to_peft() -> None:
    """--lora_dropout is accepted and does nothing."""
    args = train.build_parser().parse_args(["--lora_dropout", "0.5"])
    adapted = add_adapters(tiny_models.make_model("llama").requires_grad_(False), args).train()
    assert not any("forward" in vars(layer) for layer in adapted.modules() if hasattr(layer, "lora_A"))
    for layer in adapted.modules():
        if hasattr(layer, "lora_A"):
            torch.nn.init.normal_(layer.lora_B["default"].weight)
    batch = right_padded(encoded_rows(), tiny_models.make_tokenizer().eos_token_id)
    losses = {sum_of_losses(adapted, adapted.get_base_model(), batch).item() for _ in range(3)}
    assert len(losses) == 3


def test_nf4_gradients_are_the_same_after_an_evaluation(model_folder: Path) -> None:
    """Training with NF4 on a CPU learns next to nothing: the first evaluation cuts the gradients off."""
    batch = right_padded(encoded_rows(), tiny_models.make_tokenizer().eos_token_id)
    found = []
    for evaluate_first in (False, True):
        torch.manual_seed(0)
        base = load_base_model(str(model_folder), None, "nf4", "float32")
        model = add_adapters(base, train.build_parser().parse_args([]))
        if evaluate_first:
            with torch.no_grad():
                sum_of_losses(evaluation_mode(model), model.get_base_model(), batch)
            assert not model.training
        sum_of_losses(model.train(), model.get_base_model(), batch).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if ".lora_B" in name})
    assert len(found[0]) == 14
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)
