"""Tiny models with infilling tokens: what the tests of infilling share."""
import copy
from pathlib import Path
from typing import Any

import tiny_models

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")  # of Qwen2.5-Coder
UNUSED = ("<unused0>", "<unused1>", "<unused2>")  # of no family


def with_tokens(*tokens: str) -> Any:
    """Return the tiny models' tokenizer with more special tokens."""
    tokenizer = copy.deepcopy(tiny_models.make_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def save_model(folder: Path, *tokens: str, architecture: str = "llama", tied: bool | None = None,
               seed: int = 0) -> Path:
    """Save a tiny random model whose vocabulary has `tokens` too, and return its folder."""
    import torch  # as the other modules here, which are read before a run knows whether it needs it

    tokenizer, model = with_tokens(*tokens), tiny_models.make_model(architecture, seed, tied)
    torch.manual_seed(seed)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for matrix in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            matrix[-len(tokens):].normal_(std=0.12)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
