"""What models run on and are fed with: device, precision, memory, padding, and which weights they are."""
import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from pipeline.hub.client import hub_errors, hub_files
from pipeline.model.tokenizers import check_local_model, model_errors
from pipeline.model.weight_files import weight_files
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import combined_hash, sha256_file


def quiet_libraries() -> None:
    """Keep the libraries' notes to developers off the user's screen; errors, warnings of ours and downloads
    are shown."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning,
                            module=r"(transformers|peft|bitsandbytes|torch)\b")


def choose_device() -> Any:
    """Return the torch device of this process: the NVIDIA GPU of its number under torchrun, Apple's GPU, or
    the CPU.  Raises PipelineError where torchrun started more processes than there are GPUs."""
    if torch.cuda.is_available():
        number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= max(1, gpus):
            raise PipelineError(f"torchrun: process {number + 1} on a machine with {gpus} GPUs; "
                                f"give --nproc_per_node {gpus}")
        return torch.device("cuda", number)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def take_device(script: str, deterministic: bool = False) -> Any:
    """Return the device of this process, prepared: kernels suited to rows of many lengths, and, if
    `deterministic`, those that give the same bits each time, as a CPU's do.

    Where a process without torchrun leaves GPUs unused, a line says how `script` uses them.
    """
    device = choose_device()
    # its attention builds a plan for each new shape, for 23 to 37 ms, and here every batch has its own
    torch.backends.cuda.enable_cudnn_sdp(False)
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it starts
            torch.use_deterministic_algorithms(True)
        torch.cuda.set_device(device)
        gpus = torch.cuda.device_count()
        if gpus > 1 and "WORLD_SIZE" not in os.environ:
            print(f"note: one process uses one GPU, and {gpus} are visible; torchrun --nproc_per_node {gpus} "
                  f"{script} ... uses them all", file=sys.stderr)
    return device


def choose_precision(name: str) -> str:
    """Return bf16, fp16 or float32 for `auto`: what the hardware computes fast; any other name is returned as
    it is."""
    if name != "auto":
        return name
    device = choose_device()
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "bf16" if torch.backends.mps.is_macos_or_newer(14, 0) else "float32"
    capabilities = torch.cpu.get_capabilities()
    fast = any(capabilities.get(kind) for kind in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if fast else "float32"


def device_name() -> str:
    """Return the GPU's name, or CPU and the number of threads."""
    device = choose_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple's GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def available_memory() -> int:
    """Return the bytes that this process can still take: of the GPU's memory, or of the machine's within the
    limit of its container."""
    device = choose_device()
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    if device.type == "mps":
        free = min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no such files, or the limit is the word "max"
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error says that the device's memory has ended: torch's own kind, or one of the
    libraries below it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "_STATUS_ALLOC_FAILED" in text)


class MemoryMayEnd(contextlib.AbstractContextManager):
    """A block that is left where memory ends.  What it had in memory is let go then: an `except` would hold
    the error, and the error the block's variables."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        return is_out_of_memory(error)


def release_memory() -> None:
    """Give memory that torch keeps for the next tensors back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def to_device(tensor: Any, device: Any) -> Any:
    """Return a tensor of the CPU on `device`.  A GPU copies it while the host goes on."""
    if torch.device(device or "cpu").type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def torch_dtype(precision: str) -> Any:
    """Return the torch dtype of bf16, fp16 or float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[precision]


def max_positions(config: Any) -> int | None:
    """Return the tokens that a model has positions for, by its configuration or that of its language part;
    None where it names no bound."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def context_length(name: str, revision: str | None) -> int | None:
    """Return the tokens that a model has positions for, by its configuration; None where that names no
    bound."""
    check_local_model(name)
    with model_errors(name):
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    return max_positions(config)


def model_hash(name: str, revision: str | None) -> str:
    """Return the hub commit of a hub model, or the combined hash of the weight files of a local folder."""
    if not Path(name).is_dir():
        with hub_errors("model", name):
            return hub_files(name, revision)[0]
    return combined_hash({file.name: sha256_file(file) for file in weight_files(Path(name))})


def check_tokens_known(model: Any, tokenizer: Any, highest: int) -> None:
    """Raise PipelineError where the end-of-text token, or the `highest` token of what a model is to read, has
    no row in its embedding: a tokenizer that was extended, or edited, without the model."""
    rows = model.get_input_embeddings().weight.shape[0]
    for what, token in (("its end-of-text token", tokenizer.eos_token_id), ("a token of the data", highest)):
        if token >= rows:
            raise PipelineError(f"model {model.name_or_path}: {what}, "
                                f"{tokenizer.convert_ids_to_tokens(token)!r}, has the number {token}, and "
                                f"the model knows {rows} tokens; use the tokenizer that belongs to the model")


