"""Tokenizers: loading one, and a prompt's tokens as training and inference both see them."""
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tokenizers import Tokenizer

from pipeline.hub.client import hub_errors, hub_files
from pipeline.run.errors import PipelineError, disk_mistake, first_line, looks_like_path

# How a chat template gets from a value to Python's own objects.
HOSTILE_TEMPLATE = re.compile(r"__(class|base|bases|mro|subclasses|globals|init|builtins|import|code|"
                              r"getattribute)__|\\x5f|\|\s*attr\b")

DECODING_CONTEXT = 8  # tokens before others that are decoded with them


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a local folder or hub model; PipelineError in one line where there is none."""
    from transformers import AutoTokenizer  # 2.6 s, which stage 2 pays only where it has to convert

    check_local_model(name)
    with model_errors(name):
        if not Path(name).is_dir():
            hub_files(name, revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of no files at all
        raise PipelineError(f"model {name}: holds no tokenizer; save one beside it, or name another model's "
                            "(benchmarking.py --tokenizer)")
    if tokenizer.eos_token_id is None:
        raise PipelineError(f"model {name}: its tokenizer has no end-of-text token; use another model")
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        templates = {"default": templates or ""}
    # never used here, but saved, and published, with what is made of the model
    for label, template in templates.items():
        if not re.fullmatch(r"[\w-]+", label) or HOSTILE_TEMPLATE.search(template):
            raise PipelineError(f"model {name}: its chat template {label!r} reaches out of where it belongs; "
                                "do not use this model")
    return tokenizer


def tokenizer_identity(tokenizer: Any) -> str:
    """Return the SHA-256 of what a tokenizer does with any text: vocabulary, rules and end token."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for state in ("truncation", "padding"):  # of a call, not of the tokenizer
            rules.pop(state, None)
    else:
        rules = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    text = json.dumps([rules, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def encode_prompts(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """Return the token ids of prompts, as training and inference both see them.

    A prompt gets the special tokens that the tokenizer puts before a text, and none behind it: the completion
    goes on there.  Text that looks like a special token stays text.
    """
    if not prompts:
        return []
    encoded = tokenizer(prompts, return_attention_mask=False, split_special_tokens=True)["input_ids"]
    eos = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == eos and len(ids) > 1 else ids for ids in encoded]


def encode_plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts without special tokens; text that looks like one stays text."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True,
                     return_attention_mask=False)["input_ids"] if texts else []


def encode_pairs(tokenizer: Any, prompts: list[str],
                 completions: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of prompts and of completions, which together are those of the running text.

    The text is tokenized once and cut where the ids of the prompt alone (`encode_prompts`), which are what a
    model is asked with, stop being its own: a token that reaches over the cut, with what stands before it
    that the prompt alone has otherwise, is the completion's.  Tokenized apart, a completion begins as a text
    does, with tokens that stand in no running text (the mark of a first word of sentencepiece and WordPiece).
    """
    behind = encode_prompts(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    cuts = [shared_start(alone, ids)
            for alone, ids in zip(encode_prompts(tokenizer, prompts), behind, strict=True)]
    return ([ids[:cut] for ids, cut in zip(behind, cuts, strict=True)],
            [ids[cut:] for ids, cut in zip(behind, cuts, strict=True)])


def shared_start(one: list[int], other: list[int]) -> int:
    """Return how many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)))


def decode_behind(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    """Return the text of `ids` as it stands behind the tokens `before`, special tokens left out.

    Decoded alone, the first word loses the space before it where the tokenizer takes it for a text's
    beginning (sentencepiece, WordPiece).
    """
    before = before[-DECODING_CONTEXT:]
    known, text = (tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                   for tokens in (before, [*before, *ids]))
    return text[len(known):]


def check_local_model(name: str) -> None:
    """Raise PipelineError where `name` can only be a local folder and is not one that holds a model."""
    folder = Path(name)
    if not folder.exists() and looks_like_path(name):
        raise PipelineError(f"model {name}: no such folder; check the path")
    if folder.exists() and not ((folder / "config.json").is_file()
                                or (folder / "adapter_config.json").is_file()):
        raise PipelineError(f"model {name}: holds neither config.json nor adapter_config.json; name a model "
                            "folder")


@contextlib.contextmanager
def model_errors(name: str) -> Iterator[None]:
    """As `hub_errors`, for what transformers does with a model's files: where one is damaged, it raises
    errors of any type."""
    try:
        with hub_errors("model", name):
            yield
    except Exception as error:
        out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if isinstance(error, PipelineError) or out_of_memory or disk_mistake(error):
            raise
        raise PipelineError(f"model {name}: cannot be loaded ({type(error).__name__}: {first_line(error)}); "
                            "if one of its files is damaged, get it again") from error


def tokenizer_json(name: str) -> str:
    """Return the fast tokenizer of a local folder or hub model as JSON; PipelineError where it cannot be
    used."""
    data = read_tokenizer(name)
    try:
        text = data.decode()
        Tokenizer.from_str(text)  # here, not in a worker process, whose death says nothing
    except Exception as error:  # the library raises nothing more precise
        raise PipelineError(f"model {name}: its tokenizer.json cannot be read ({first_line(error)}); fetch "
                            "it again") from None
    return text


def read_tokenizer(name: str) -> bytes:
    """Return the bytes of a model's tokenizer.json, without importing transformers if possible."""
    check_local_model_or_tokenizer(name)
    local = Path(name) / "tokenizer.json"
    if local.is_file():
        return local.read_bytes()
    if not Path(name).is_dir():
        with hub_errors("model", name):
            try:
                return Path(hf_hub_download(name, "tokenizer.json")).read_bytes()
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                pass  # an older tokenizer format, which transformers converts
    tokenizer = load_tokenizer(name)
    if not tokenizer.is_fast:
        raise PipelineError(f"model {name}: has no fast tokenizer, whose offsets are needed; use another "
                            "model")
    return tokenizer.backend_tokenizer.to_str().encode()


def check_local_model_or_tokenizer(name: str) -> None:
    """As `check_local_model`, but a folder that holds only a tokenizer will do."""
    if not (Path(name) / "tokenizer.json").is_file():
        check_local_model(name)
