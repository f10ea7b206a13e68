"""What models run on and are fed with: device, precision, memory, padding, and which weights they are."""
import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

from pipeline.errors import PipelineError
from pipeline.files import combined_hash, sha256_file
from pipeline.hub import hub_errors, hub_files
from pipeline.tokenizers import check_local_model, model_errors
from pipeline.weight_files import weight_files

IGNORED_LABEL = -100  # torch's and transformers' mark of a position without a label


def quiet_libraries() -> None:
    """Keep the libraries' notes to developers off the user's screen; errors, warnings of ours and downloads
    are shown."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning,
                            module=r"(transformers|peft|bitsandbytes|torch)\b")


def choose_precision(name: str) -> str:
    """Return bf16, fp16 or float32 for `auto`: what the hardware computes fast; any other name is returned as
    it is."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    fast = any(capabilities.get(kind) for kind in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if fast else "float32"


def device_name() -> str:
    """Return the GPU's name, or CPU and the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def available_memory() -> int:
    """Return the bytes that this process can still take: of the GPU's memory, or of the machine's within the
    limit of its container."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no such files, or the limit is the word "max"
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


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


def right_padded(rows: list[dict[str, list[int]]], pad_token_id: int, device: Any = None) -> dict[str, Any]:
    """Return input_ids and labels of shape (rows, longest row), padded on the right.

    Padding is marked by IGNORED_LABEL, not by the token's identity: an end-of-text token that doubles as the
    padding token stays supervised where it ends a completion.  There is no attention mask: padding stands
    behind every real token, and a causal model does not look there.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest)
    ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORED_LABEL)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length], labels[i, :length] = row["input_ids"], row["labels"]
    return {"input_ids": torch.from_numpy(ids).to(device), "labels": torch.from_numpy(labels).to(device)}


def left_padded(rows: list[list[int]], pad_token: int, device: Any) -> dict[str, Any]:
    """Return a model's input_ids, attention_mask and position_ids of shape (rows, longest row), padded on the
    left."""
    longest = max(map(len, rows))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": torch.tensor([[pad_token] * (longest - len(row)) + row for row in rows],
                                      device=device),
            "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
