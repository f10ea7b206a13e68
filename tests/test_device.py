"""pipeline/model/device.py: what a stage runs on, how rows are padded, and which weights a model has."""
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pipeline.model import device, padding
from pipeline.model.padding import IGNORED_LABEL
from pipeline.run.errors import PipelineError


@pytest.mark.parametrize("command", [("train.py",), ("merge_lora.py", "--hf_repository", "./a")])
def test_bitsandbytes_says_nothing_while_it_is_loaded(command: tuple[str, ...], tmp_path: Path,
                                                      run_script: Callable,
                                                      error_line: Callable[[str], str]) -> None:
    """The user of a CPU is told, above his own mistake, to install something that he does not need."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    done = run_script(*command, "--output_dir", "mine")
    assert "did not write (thesis.txt)" in error_line(done.stderr)


def test_the_precision_is_one_that_torch_has() -> None:
    """The precision that is asked for is replaced, or `auto` is handed on to torch."""
    for name in ("bf16", "fp16", "float32"):
        assert device.choose_precision(name) == name
    assert device.torch_dtype(device.choose_precision("auto")).is_floating_point


def test_padding_on_the_right_is_no_label() -> None:
    """The padding is learned, or the end-of-text token, which has the same number, is not."""
    rows = [{"input_ids": [5, 6, 0], "labels": [IGNORED_LABEL, 6, 0]}, {"input_ids": [7], "labels": [7]}]
    batch = padding.right_padded(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 0, 0]]
    # 5 predicts 6, and 6 the end; what a row begins with is predicted by nothing
    assert batch["positions"].tolist() == [0, 1]
    assert batch["targets"].tolist() == [6, 0]


def test_padding_on_the_left_moves_no_position() -> None:
    """A short prompt in a batch is read as if it stood further behind, or its padding is read."""
    batch = padding.left_padded([[5, 6, 7], [8]], pad_token=0, device="cpu")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_the_hash_of_a_model_is_that_of_its_weights(tmp_path: Path) -> None:
    """Two models pass for the same one, or a model for another because its card was edited."""
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    before = device.model_hash(str(tmp_path), None)
    (tmp_path / "README.md").write_text("edited")
    assert device.model_hash(str(tmp_path), None) == before
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert device.model_hash(str(tmp_path), None) != before


@pytest.mark.parametrize(("end", "highest", "named"), [
    (399, 399, None), (400, 7, "its end-of-text token, 'x400', has the number 400, and the model knows 400"),
    (0, 401, "a token of the data, 'x401'")])
def test_tokens_without_an_embedding_are_told(end: int, highest: int, named: str | None) -> None:
    """A tokenizer that was extended without its model is an "index out of range in self"."""
    model = SimpleNamespace(name_or_path="mine", get_input_embeddings=lambda: torch.nn.Embedding(400, 2))
    tokenizer = SimpleNamespace(eos_token_id=end, convert_ids_to_tokens=lambda token: f"x{token}")
    if named:
        with pytest.raises(PipelineError, match=named):
            device.check_tokens_known(model, tokenizer, highest)
    else:
        device.check_tokens_known(model, tokenizer, highest)


@pytest.mark.parametrize(("error", "ended"), [
    (torch.OutOfMemoryError("CUDA out of memory."), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (torch.AcceleratorError("CUDA error: out of memory"), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    (ValueError("out of memory"), False)])
def test_every_kind_of_ended_memory_is_taken_for_it(error: Exception, ended: bool) -> None:
    """A run ends although half of the batch would fit; or a bug is taken for it, and repeated for ever."""
    if ended:
        with device.MemoryMayEnd():
            raise error
    else:
        with pytest.raises(type(error)), device.MemoryMayEnd():
            raise error


@pytest.mark.parametrize(("cuda", "mps", "rank", "found"), [
    (0, False, None, "cpu"), (0, True, None, "mps"), (1, False, None, "cuda:0"), (2, True, "1", "cuda:1"),
    (2, False, "2", "process 3 on a machine with 2 GPUs; give --nproc_per_node 2")])
def test_one_function_chooses_the_device(cuda: int, mps: bool, rank: str | None, found: str,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes work on one GPU, or a stage leaves the GPU unused that another takes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    if "process" in found:
        with pytest.raises(PipelineError, match=found):
            device.choose_device()
    else:
        assert str(device.choose_device()) == found


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_is_prepared(deterministic: bool, monkeypatch: pytest.MonkeyPatch,
                           capsys: pytest.CaptureFixture) -> None:
    """--deterministic does nothing, or is always on; or each new length of a row costs a plan."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        device.take_device("train.py", deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not capsys.readouterr().err  # one GPU: nothing to tell
