"""pipeline/merging/gguf_file.py: llama.cpp itself reads the merged model and writes the same."""
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
from evaluation_runs import written_alone
from merging_runs import merge, refusal
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.merging.gguf_file import GGUF_FILE, pre_tokenizer, write_gguf

pytestmark = pytest.mark.usefixtures("one_thread")
BUDGET = 24


@pytest.fixture(scope="module")
def llama_cpp() -> Callable[[Path], Callable[..., dict[str, Any]]]:
    """Return a function that loads a GGUF file in llama.cpp, everything in float32, and gives one that writes
    behind a prompt: {"text", "finish_reason"}."""
    xllamacpp = pytest.importorskip("xllamacpp")

    def load(file: Path) -> Callable[..., dict[str, Any]]:
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(file), tiny_models.CONTEXT, 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.warmup, settings.verbosity = False, 0
        server = xllamacpp.Server(settings)

        def write(prompt: str | list[int], budget: int = BUDGET, **more: Any) -> dict[str, Any]:
            answer = server.handle_completions({"prompt": prompt, "max_tokens": budget, "temperature": 0.0,
                                                "cache_prompt": False, **more})
            return answer["choices"][0] | answer["usage"]
        return write
    return load


def test_llama_cpp_writes_what_the_merged_model_writes(adapter_folder: Path, tmp_path: Path,
                                                       llama_cpp: Callable) -> None:
    """In Ollama the model is another one: a matrix is turned wrongly, or a prompt has other tokens."""
    merge(adapter_folder, tmp_path / "merged", "--gguf", "--dtype", "float32")
    assert GGUF_FILE in json.loads((tmp_path / "merged" / "manifest.json").read_text())["outputs"]
    write = llama_cpp(tmp_path / "merged" / GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    prompts = [prompt for prompt, _ in tiny_models.examples(20, seed=5)]
    base = AutoModelForCausalLM.from_pretrained(json.loads(
        (adapter_folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    texts, of_base = [], []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        texts.append(tokenizer.decode(written_alone(model, ids, BUDGET, eos_token_id=tokenizer.eos_token_id),
                                      skip_special_tokens=True))
        of_base.append(tokenizer.decode(written_alone(base, ids, BUDGET), skip_special_tokens=True))
        assert write(prompt)["prompt_tokens"] == len(ids)
    assert [write(prompt)["text"] for prompt in prompts] == texts
    assert texts != of_base  # the comparison would pass on a model without the adapter


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_kept(dtype: str, adapter_folder: Path, tmp_path: Path, llama_cpp: Callable) -> None:
    """A model in 16 bits is written in others, or llama.cpp does not load it."""
    merge(adapter_folder, tmp_path / "merged", "--gguf", "--dtype", dtype)
    weights, file = (tmp_path / "merged" / name for name in ("model.safetensors", GGUF_FILE))
    assert abs(file.stat().st_size - weights.stat().st_size) < 30_000  # of them, the vocabulary
    assert llama_cpp(file)("fun alpha(", 2)["completion_tokens"] == 2


@pytest.fixture(scope="module")
def infilling(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny Llama with Qwen2.5-Coder's tokens, whose tokenizer ends texts by another one than it ends
    middles."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.save_model(folder / "model", "llama", seed=4))
    marks = ["<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
             "<|file_sep|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks, "eos_token": "<|im_end|>"})
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.resize_token_embeddings(len(tokenizer))
    return SimpleNamespace(folder=folder, tokenizer=tokenizer, model=model)


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>", "<|file_sep|>", "<|fim_pad|>"])
def test_what_ends_a_middle_ends_it_in_llama_cpp(end: str, infilling: SimpleNamespace, tmp_path: Path,
                                                 llama_cpp: Callable) -> None:
    """llama.cpp runs on behind the middle, because its end is not the token that ends a text."""
    model, tokenizer = infilling.model, infilling.tokenizer
    head = model.get_output_embeddings().weight
    before = head.detach().clone()
    try:
        head.data[tokenizer.convert_tokens_to_ids(end)] = 50 * head.data.mean(0).sign()  # nearly always
        number = tokenizer.convert_tokens_to_ids(end)
        prompt = next(ids for ids in ([x, y] for x in range(9, 400) for y in (8, 90))
                      if written_alone(model, ids, 1) == [number])
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
    finally:
        head.data.copy_(before)
    found = llama_cpp(write_gguf(tmp_path / "model"))(prompt)
    assert (found["text"], found["finish_reason"]) == ("", "stop")


@pytest.mark.parametrize(("rules", "name"), [
    ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}, "gpt-2"),
    ({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]}, "smollm")])
def test_how_a_text_is_cut(rules: dict, name: str) -> None:
    """llama.cpp cuts numbers otherwise than the model was trained on."""
    assert pre_tokenizer({"model": {"type": "BPE"}, "pre_tokenizer": rules}, "m") == name


def test_other_models_are_refused_before_the_work(adapter_folder: Path, model_folder: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture) -> None:
    """A file is written that llama.cpp reads, and that computes something else."""
    base = tiny_models.save_model(tmp_path / "qwen2", "qwen2")
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    line = refusal(capsys, adapter, tmp_path / "merged", "--gguf")
    assert "architecture qwen2, not llama" in line
    assert "convert_hf_to_gguf.py" in line
    for file, old, new, said in (
            ("config.json", '"mlp_bias": false', '"mlp_bias": true', "mlp_bias True"),
            ("config.json", '"rope_type": "default"', '"rope_type": "linear", "factor": 2.0', "linear"),
            ("tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true', "none that is")):
        other = shutil.copytree(model_folder, tmp_path / said.replace(" ", ""))
        text = (other / file).read_text()
        text = json.dumps(json.loads(text), indent=2)
        assert old in text
        (other / file).write_text(text.replace(old, new))
        line = refusal(capsys, adapter_folder, tmp_path / "merged", "--gguf", "--base_model", other)
        assert said in line
    assert not (tmp_path / "merged").exists()
