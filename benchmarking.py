"""Stage 5 of 5: compare the base and the fine-tuned model on Python (CodeXGLUE method generation) and on held-out Kotlin.

Reads   --hf_repository            the fine-tuned model: a folder or hub name, a merged model or an adapter
        --base_model               the model that it was made from
        data/test_codexglue.jsonl  {"signature", "docstring", "body", "id"}; fetched from the hub where it is missing
        --dataset                  its test split: {"prompt", "completion"}
Writes  results/predictions/       what each model wrote for each example, as JSONL; found again by the next run
        results/metrics.json       every score with its interval and its settings
        results/table.md, chart.png
        results/report.md          all scores, how the examples changed (change.png), ten of each set side by side
        --hf_repository            with --update_card: the scores in its model card

Both models get the same prompts, precision, budget, batch size and stop rules, and decode greedily.  Only new tokens
are the prediction.  A Python prompt is the signature and then the docstring, well formed; generation stops where the
method ends, by its indentation.  A Kotlin prediction stops at the end-of-text token or after --max_new_tokens.
References and predictions pass the same normalization.  Scores: edit similarity (rapidfuzz's normalized indel ratio,
rounded an example, as CodeXGLUE's evaluator computes it with the Levenshtein package), BLEU (bleu.py) and how often the
first line is exact, 0 to 100; and the mean loss a token of the reference behind its prompt, in nats, less being better.
Intervals are 95 % percentile bootstraps (Efron 1979); differences are paired and tested by approximate randomization
(Noreen 1989); examples of one file are resampled together.

Memory: one model at a time and the cache of one batch; a batch that does not fit is halved.  Time: linear in examples
times new tokens; a row that has ended costs nothing more.  A run that was killed goes on with the last whole batch.

Run:    python benchmarking.py --hf_repository models/merged
Quick:  python benchmarking.py --hf_repository models/merged --sample 50
GPUs:   torchrun --nproc_per_node 2 benchmarking.py --hf_repository models/merged
"""
import argparse
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bleu import bleu_of_sums, corpus_statistics
from pipeline_io import (
    MANIFEST,
    MODEL_FILES,
    PipelineError,
    atomic_file,
    check_hub_write,
    check_local_model,
    check_manifest,
    choose_precision,
    combined_hash,
    content_hashes,
    device_name,
    duration,
    encode_prompts,
    find_manifest,
    hub_errors,
    hub_file_hashes,
    hub_files,
    load_examples,
    load_tokenizer,
    looks_like_path,
    model_errors,
    non_negative_int,
    output_lock,
    positive_int,
    quiet_libraries,
    read_jsonl,
    run_stage,
    sealed_manifest,
    sha256_file,
    sweep_leftovers,
    torch_dtype,
    with_hub_retries,
    write_json,
    write_manifest,
)

OUTPUTS = ("metrics.json", "table.md", "report.md", "chart.png", "change.png")
CODEXGLUE_DATASET, CODEXGLUE_FILE = "microsoft/codexglue_method_generation", "test.jsonl"
CODEXGLUE_EXAMPLES = 20_000  # a file of another length is a stand-in, and its scores are not published as CodeXGLUE's
CODEXGLUE_FIELDS = {"signature": str, "docstring": str, "body": str}
CODEXGLUE_MAX_NEW_TOKENS = 256  # the budget of the benchmark's own run
DEFAULT_CHUNK_TOKENS = 100
INDENT = "    "
RESAMPLES, INTERVAL = 2000, (2.5, 97.5)
RESAMPLE_BLOCK = 100  # resamples whose weights are in memory at one time
SIGNIFICANT = 0.05


@dataclass
class Example:
    """One thing to predict."""
    id: str
    prompt: str
    reference: str  # normalized, as it is scored
    first_line: str  # the first line of the reference, normalized
    group: int  # examples of one group (one source file) are resampled together
    completion: str = ""  # the reference as it would stand behind the prompt


@dataclass
class Task:
    """One benchmark set: its examples and how predictions of it are made and normalized."""
    name: str
    examples: list[Example]
    max_new_tokens: int
    normalize: Callable[[str], str]
    # offset where a text that is being generated has ended, if it has; None: only an end token ends it
    end_of_prediction: Callable[[str], int | None] | None
    settings: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""  # hub name, or name of the file or folder


# ---------------------------------------------------------------------------------------------------------------
# CodeXGLUE's text format
# ---------------------------------------------------------------------------------------------------------------

_LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT(?::(.*?))?>", re.DOTALL)
_LAYOUT = re.compile(r"<(EOL|INDENT|DEDENT)>")
_UNPRINTABLE = {"U+0020": " ", "U+002C": ","}  # how the data set writes a space and a comma inside a literal


def codexglue_reference(body: str) -> str:
    """Return a body of the data set as its evaluator scores it: literals filled in, white space folded."""
    body = body.replace("<EOL>", "\n").replace("<INDENT>", " ").replace("<DEDENT>", " ")
    return fold_white_space(_LITERAL.sub(_literal_text, body))


def _literal_text(match: re.Match) -> str:
    return match[2] if match[2] is not None else {"STR": "", "NUM": "0", "CHAR": ""}[match[1]]


def fold_white_space(text: str) -> str:
    """Return the text with every run of white space as one space, and none at the ends."""
    return " ".join(text.split())


def plain_python(text: str) -> str:
    """Return a signature or docstring of the data set as ordinary Python text."""
    def spelled(match: re.Match) -> str:
        value = _literal_text(match)
        for code, character in _UNPRINTABLE.items():
            value = value.replace(code, character)
        return value
    return _LAYOUT.sub(lambda m: "\n" if m[1] == "EOL" else "", _LITERAL.sub(spelled, text))


def plain_body(body: str) -> str:
    """Return a body of the data set as it would follow its prompt: on lines of its own, indented by four spaces a level."""
    lines, depth = [], 1
    for place, part in enumerate(_LAYOUT.split(body)):  # text and layout marks in turn
        if place % 2:
            depth += {"INDENT": 1, "DEDENT": -1}.get(part, 0)
        elif part.strip():
            lines.append(INDENT * max(1, depth) + plain_python(part).strip())
    return "".join(f"\n{line}" for line in lines)


def codexglue_prompt(signature: str, docstring: str) -> str:
    """Return the start of a well-formed function: the signature, then the docstring.

    No line end behind it: many tokenizers join a line end and the indentation behind it into one token, and a prompt
    that ended between the two would ask for something that the model has never seen.
    """
    head = plain_python(signature).strip()
    head = head if head.endswith(":") else f"{head}:"
    text = plain_python(docstring).strip()
    if not text:
        return head
    lines = [line.rstrip() for line in text.expandtabs(4).split("\n")]
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line), default=0)
    body = "\n".join([lines[0], *(INDENT + line[margin:] if line else "" for line in lines[1:])])
    # a backslash would begin an escape sequence, and quotes would end the docstring
    body = body.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    if body.endswith('"'):
        body += " "
    end = f"\n{INDENT}" if "\n" in body else ""
    return f'{head}\n{INDENT}"""{body}{end}"""'


def common_literals(bodies: Iterable[str]) -> set[tuple[str, str]]:
    """Return the literals that the data set kept, as (STR or NUM, text): those that its references hold."""
    return {(match[1], match[2]) for body in bodies for match in _LITERAL.finditer(body) if match[2] is not None}


# A lexer of our own and not the standard library's: that one stops at the first thing that is not Python, as an
# unfinished prediction is, and its tokens of f-strings depend on the version of Python that runs it.
_TOKEN = re.compile(r"""
    (?P<comment>\#[^\n]*)
  | (?P<continuation>\\\n)
  | (?P<string>(?P<prefix>(?<![^\W])[rbuf]{0,2})(?:
        (?P<triple>\"\"\"|''')(?P<long>(?:\\.|(?!(?P=triple)).)*)(?P<long_end>(?P=triple)|\Z)
      | (?P<quote>["'])(?P<short>(?:\\.|(?!(?P=quote))[^\\\n])*)(?P<short_end>(?P=quote)|(?=\n)|\Z|(?=\\\Z))))
  | (?P<name>[^\W\d]\w*)
  | (?P<number>(?:0[xob][\da-f_]+|(?:\d[\d_]*)?\.\d[\d_]*(?:e[+-]?\d+)?|\d[\d_]*\.?(?:e[+-]?\d+)?)j?l?)
  | (?P<other>.)
""", re.VERBOSE | re.DOTALL | re.IGNORECASE)


def normalize_python(code: str, common: set[tuple[str, str]]) -> str:
    """Return predicted Python as the data set writes its references, scored form.

    Comments and the backslashes of continued lines are dropped; a string or number that is not among the `common`
    literals is emptied (quotes stay, a number becomes 0); white space is folded.
    """
    return fold_white_space(_TOKEN.sub(lambda match: _normalized_token(match, common), code))


def _normalized_token(match: re.Match, common: set[tuple[str, str]]) -> str:
    if match["comment"] is not None or match["continuation"] is not None:
        return "" if match["continuation"] is None else " "
    if match["number"] is not None:
        return match["number"] if ("NUM", match["number"]) in common else "0"
    if match["string"] is None:
        return match[0]
    quote = match["triple"] or match["quote"]
    text = match["long"] if match["triple"] else match["short"]
    for character, code in ((" ", "U+0020"), (",", "U+002C")):
        text = text.replace(character, code)
    end = match["long_end"] if match["triple"] else match["short_end"]
    return f"{match['prefix']}{quote}{text if ('STR', text) in common else ''}{end}"


_LINE_AT_COLUMN_0 = re.compile(r"\n\S")


def method_end(body: str) -> int | None:
    """Return where the body of a method at column 0 has ended in `body`, or None while it may go on.

    That is the start of the first line of code at column 0 that stands outside brackets and strings and does not
    continue the line before it.  A comment does not end a method, whatever its column.
    """
    if not _LINE_AT_COLUMN_0.search(body):  # asked at every new token
        return None
    depth, at_line_start = 0, False  # it begins behind the prompt's last character
    for match in _TOKEN.finditer(body):
        text = match[0]
        if at_line_start and not text.isspace() and match["comment"] is None and depth == 0:
            return match.start()
        if match["string"] is not None:
            end = match["long_end"] if match["triple"] else match["short_end"]
            if not end and match.end() == len(body):
                return None  # a string is open
        if match["other"] is not None:
            depth = max(0, depth + (text in "([{") - (text in ")]}"))
        at_line_start = text == "\n"
    return None


def first_line(text: str, normalize: Callable[[str], str]) -> str:
    """Return the first line of a completion that holds anything, normalized."""
    return next((line for line in map(normalize, text.splitlines()) if line), "")


# ---------------------------------------------------------------------------------------------------------------
# The two sets
# ---------------------------------------------------------------------------------------------------------------

def draw(number_of_rows: int, sample: int, seed: int) -> list[int]:
    """Return `sample` row numbers drawn at random with the seed, in order; 0, or more than there are: all."""
    if sample == 0 or sample >= number_of_rows:
        return list(range(number_of_rows))
    return sorted(random.Random(seed).sample(range(number_of_rows), sample))


def fetch_codexglue(path: Path) -> None:
    """Fetch the benchmark's test file from the hub to `path`, unless it is there."""
    if path.is_file():
        return
    from huggingface_hub import hf_hub_download

    try:
        with hub_errors("data set", CODEXGLUE_DATASET):
            cached = hf_hub_download(CODEXGLUE_DATASET, CODEXGLUE_FILE, repo_type="dataset")
    except PipelineError as error:
        raise PipelineError(f"--codexglue_file {path}: no such file, and fetching it failed ({error}); download {CODEXGLUE_FILE} of "
                            f"the data set {CODEXGLUE_DATASET} from the hub and put it there") from None
    with open(cached, "rb") as source, atomic_file(path, binary=True) as target:
        shutil.copyfileobj(source, target)
    print(f"fetched {path} from the hub data set {CODEXGLUE_DATASET}", file=sys.stderr)


def codexglue_task(path: Path, sample: int, seed: int) -> Task:
    """Return the Python task; the common literals are those of the whole file, whatever the sample."""
    fetch_codexglue(path)
    rows = list(read_jsonl(path, CODEXGLUE_FIELDS))
    if not rows:
        raise PipelineError(f"--codexglue_file {path}: holds no example; delete it, and it is fetched again")
    common = common_literals(row["body"] for row in rows)
    examples = [Example(id=str(rows[i].get("id", i)), prompt=codexglue_prompt(rows[i]["signature"], rows[i]["docstring"]),
                        reference=codexglue_reference(rows[i]["body"]), group=i, completion=plain_body(rows[i]["body"]),
                        first_line=first_line(rows[i]["body"].replace("<EOL>", "\n"), codexglue_reference))
                for i in draw(len(rows), sample, seed)]
    return Task("CodeXGLUE (Python)", examples, CODEXGLUE_MAX_NEW_TOKENS, lambda text: normalize_python(text, common), method_end,
                {"file": path.name, "sha256": sha256_file(path), "prompt": "signature, docstring", "stop": "end of method"},
                CODEXGLUE_DATASET if len(rows) == CODEXGLUE_EXAMPLES else path.name)


def chunk_tokens(dataset: str) -> int:
    """Return the length of a data set's chunks by its manifest, or the default of preprocess_data.py, saying so."""
    length = (find_manifest(dataset, "dataset") or {}).get("arguments", {}).get("chunk_tokens")
    if isinstance(length, int) and length > 0:
        return length
    print(f"note: --dataset {dataset}: no manifest gives the length of its chunks; the budget is {DEFAULT_CHUNK_TOKENS} new tokens "
          "(--max_new_tokens sets another)", file=sys.stderr)
    return DEFAULT_CHUNK_TOKENS


def kotlin_task(dataset: str, sample: int, seed: int, max_new_tokens: int) -> Task:
    """Return the task of the data set's test split; `max_new_tokens` 0: the length of its chunks."""
    data = load_examples(dataset, ("test",))["test"]
    if not len(data):
        raise PipelineError(f"--dataset {dataset}: its test split is empty; run preprocess_data.py on more files")
    chosen = draw(len(data), sample, seed)
    rows = data.select(chosen)[:]
    groups = rows.get("source_line", chosen)
    examples = [Example(str(number), prompt, fold_white_space(completion), first_line(completion, fold_white_space), int(group), completion)
                for number, prompt, completion, group in zip(chosen, rows["prompt"], rows["completion"], groups, strict=True)]
    digest = hashlib.sha256()  # of the split itself: the same in a folder and on the hub
    for batch in data.select_columns(["prompt", "completion"]).iter(1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    return Task("Kotlin", examples, max_new_tokens or chunk_tokens(dataset), fold_white_space, None,
                {"data_hash": digest.hexdigest(), "prompt": "one chunk", "stop": "end of text"},
                Path(dataset).name if Path(dataset).is_dir() else dataset)


# ---------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------

@dataclass
class ModelSource:
    """A model to be evaluated: its name, its identity, the folder of its adapter if it is one, and its commit on the hub."""
    name: str
    identity: str  # hub commit, or combined hash of the folder's weights and settings
    adapter: str | None = None
    commit: str | None = None
    weights_hash: str | None = None  # of a folder's weights alone


def identify_model(name: str, revision: str | None) -> ModelSource:
    """Return what `name` is, without loading it: a model or an adapter, local or on the hub."""
    check_local_model(name)
    folder = Path(name)
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise PipelineError(f"model {name}: holds no safetensors file; pickled weights are not loaded")
        is_adapter = (folder / "adapter_config.json").is_file()
        if is_adapter and any(file.name.startswith("model") for file in weights):
            raise PipelineError(f"model {name}: holds an adapter and merged weights side by side, and a load would apply the adapter "
                                "twice; move one of them away")
        known = check_manifest(folder, MODEL_FILES) or {"outputs": {}}
        weights_hash = combined_hash({file.name: known["outputs"].get(file.name) or sha256_file(file) for file in weights})
        settings = {file.name: sha256_file(file) for file in sorted(folder.glob("*.json")) if file.name != MANIFEST}
        return ModelSource(name, combined_hash({"weights": weights_hash, **settings}), name if is_adapter else None,
                           weights_hash=weights_hash)
    from huggingface_hub import snapshot_download

    with hub_errors("model", name):
        commit, files = hub_files(name, revision)
        if not any(file.endswith(".safetensors") for file in files):
            raise PipelineError(f"model {name}: holds no safetensors file; pickled weights are not loaded")
        if "adapter_config.json" not in files:
            return ModelSource(name, commit, commit=commit)
        if "adapter_model.safetensors" not in files:
            raise PipelineError(f"model {name}: its adapter is not in safetensors; pickled weights are not loaded")
        if any(file.startswith("model") and file.endswith(".safetensors") for file in files):
            raise PipelineError(f"model {name}: holds an adapter and merged weights side by side; remove one of them")
        adapter = snapshot_download(name, revision=commit, allow_patterns=["adapter_config.json", "adapter_model.safetensors"])
    return ModelSource(name, commit, adapter, commit)


def check_adapter_base(source: ModelSource, base_model: str) -> None:
    """Raise PipelineError where an adapter names another hub model than `base_model`; a local path may be the same model."""
    if not source.adapter:
        return
    named = json.loads((Path(source.adapter) / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
    if named == base_model:
        return
    if named and not any(looks_like_path(name) or Path(name).is_dir() for name in (named, base_model)):
        raise PipelineError(f"model {source.name}: its adapter was made for {named}, and --base_model is {base_model}; name that one")
    print(f"note: the adapter names {named} as its base; it is applied to --base_model {base_model}", file=sys.stderr)


def load_model(source: ModelSource, base: ModelSource, precision: str) -> Any:
    """Return the model in evaluation mode; an adapter is merged into `base`, whatever base it names."""
    import torch
    from transformers import AutoModelForCausalLM

    whole = base if source.adapter else source
    with model_errors(whole.name):
        model = AutoModelForCausalLM.from_pretrained(whole.name, revision=whole.commit, dtype=torch_dtype(precision),
                                                     trust_remote_code=False, use_safetensors=True)
    if source.adapter:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, source.adapter).merge_and_unload()
        except (ValueError, RuntimeError) as error:
            raise PipelineError(f"model {source.name}: its adapter does not fit {base.name}: {str(error).splitlines()[0]}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def check_vllm(sources: list[ModelSource], processes: int) -> None:
    """Raise PipelineError where vLLM cannot run, or cannot run these models."""
    import torch

    instead = "or leave --engine vllm out"
    if importlib.util.find_spec("vllm") is None:
        raise PipelineError(f"--engine vllm: vllm is not installed; install it (pip install vllm), {instead}")
    if not torch.cuda.is_available():
        raise PipelineError(f"--engine vllm: needs a GPU, and there is none; use a machine that has one, {instead}")
    if processes > 1:
        raise PipelineError(f"--engine vllm: runs in one process; start it without torchrun, {instead}")
    for source in sources:
        if source.adapter:
            raise PipelineError(f"--engine vllm: {source.name} is an adapter; merge it first (python merge_lora.py --hf_repository "
                                f"{source.name}), {instead}")


def load_vllm(source: ModelSource, precision: str) -> Any:
    """Return a model in vLLM, for `generate_with_vllm`: its configurations and its `generate`.  Not yet run, as that."""
    from transformers import AutoConfig, GenerationConfig
    from vllm import LLM

    with hub_errors("model", source.name):
        config = AutoConfig.from_pretrained(source.name, revision=source.commit, trust_remote_code=False)
        try:
            generation = GenerationConfig.from_pretrained(source.name, revision=source.commit)
        except OSError:  # a model need not have this file
            generation = GenerationConfig.from_model_config(config)
        model = LLM(source.name, revision=source.commit, skip_tokenizer_init=True, trust_remote_code=False, load_format="safetensors",
                    dtype={"bf16": "bfloat16", "fp16": "float16"}.get(precision, precision), seed=0)
    return SimpleNamespace(config=config, generation_config=generation, generate=model.generate)


# ---------------------------------------------------------------------------------------------------------------
# Generation
# ---------------------------------------------------------------------------------------------------------------

# Columns of a batch's cache in all its rows, prompts and new tokens together: 6 GB with phi-1.5 in 16 bits.
BATCH_TOKENS = 32_768
PREFILL_PADDING = 512  # tokens of padding from which on a prompt begins another part of its batch


@dataclass
class Continuation:
    """What a model writes behind one prompt, token by token."""
    tokenizer: Any
    task: Task
    ends: set[int]  # tokens that end a text
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    text: str = ""  # of the tokens before `settled`, for the stop rule
    settled: int = 0  # tokens from here on may end in the middle of a character
    context: int = 0  # tokens from here to `settled` are decoded again, for tokenizers that drop a space at the beginning

    def add(self, token: int) -> bool:
        """Take the next token; return whether this is over, by an end token, the task's stop rule or its budget."""
        if token in self.ends:
            self.ended = True
        else:
            self.tokens.append(token)
            self.ended = self.task.end_of_prediction is not None and self.task.end_of_prediction(self._text_so_far()) is not None
        return self.ended or len(self.tokens) >= self.task.max_new_tokens

    def _text_so_far(self) -> str:
        """Return the text of all tokens; only the last few are decoded."""
        known, last = (self._decode(self.tokens[self.context:end]) for end in (self.settled, None))
        text = self.text + last[len(known):]
        if not text.endswith("\ufffd"):
            self.text, self.context, self.settled = text, self.settled, len(self.tokens)
        return text

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def result(self) -> dict[str, Any]:
        """Return {"text", "tokens", "ended"}, the text cut where the stop rule ends it."""
        text = self._decode(self.tokens)
        end = self.task.end_of_prediction(text) if self.task.end_of_prediction else None
        return {"text": text[:end], "tokens": len(self.tokens), "ended": self.ended}


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text: the tokenizer's and those of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    return {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured] if configured is not None else [])}


def batch_cache(parts: list[Any], columns: int) -> Any:
    """Return the caches of `parts`, one below the other and aligned on the right, as one of `columns` tokens a row.

    Its memory is taken once: the library's own copies all keys and values at every step, to append a column, and whenever a
    row leaves.  Layers that hold something else (a sliding window, a state) stay the library's; then there is one part.
    """
    import torch
    from transformers.cache_utils import DynamicLayer

    class BatchLayer(DynamicLayer):
        def __init__(self, layers: list[Any], width: int):
            super().__init__()
            self.lazy_initialization(layers[0].keys, layers[0].values)
            self.memory = [self.joined([getattr(layer, name) for layer in layers], width) for name in ("keys", "values")]
            self.rows, self.begin, self.end = len(self.memory[0]), 0, width
            self.show()

        def joined(self, states: list[Any], width: int) -> Any:
            rows, (_, heads, _, size) = sum(map(len, states)), states[0].shape
            memory, row = states[0].new_zeros(rows, heads, columns, size), 0  # zeros: what is masked must be a number
            for part in states:
                memory[row:row + len(part), :, width - part.shape[2]:width] = part
                row += len(part)
            return memory

        def show(self) -> None:
            self.keys, self.values = (memory[:self.rows, :, self.begin:self.end] for memory in self.memory)

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            for memory, states in zip(self.memory, (key_states, value_states), strict=True):
                memory[:self.rows, :, self.end:self.end + states.shape[2]] = states
            self.end += key_states.shape[2]
            self.show()
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            moved = (indices.cpu() != torch.arange(len(indices))).nonzero()[:, 0].to(indices.device)
            for states in (self.keys, self.values):
                states[moved] = states[indices[moved]]
            self.rows = len(indices)
            self.show()

    cache, width = parts[0], max(part.get_seq_length() for part in parts)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = BatchLayer([part.layers[i] for part in parts], width)
            for part in parts[1:]:
                part.layers[i] = None  # lets its memory go
    return cache


def drop_columns(cache: Any, begin: int) -> None:
    """Hide the first columns of a cache that `batch_cache` made, up to `begin`: padding in every row."""
    for layer in cache.layers:
        layer.begin = begin
        layer.show()


def left_padded(rows: list[list[int]], pad_token: int, device: Any) -> dict[str, Any]:
    """Return a model's input_ids, attention_mask and position_ids of shape (rows, longest row), padded on the left."""
    import torch

    longest = max(map(len, rows))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": torch.tensor([[pad_token] * (longest - len(row)) + row for row in rows], device=device),
            "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def prefill(model: Any, prompts: list[list[int]], pad_token: int, columns: int) -> tuple[Any, Any, bool]:
    """Return the logits behind each prompt (rows, vocabulary), the cache, and whether columns of it can be dropped.

    Prompts come sorted by length.  They pass through the model in parts of like length, so that little of it is padding.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    parts: list[list[list[int]]] = [[]]
    for prompt in prompts:
        if plain and parts[-1] and len(parts[-1]) * (len(parts[-1][0]) - len(prompt)) > PREFILL_PADDING:
            parts.append([])
        parts[-1].append(prompt)
    logits, caches = [], []
    for part in parts:
        caches.append(DynamicCache(config=model.config))
        logits.append(model(**left_padded(part, pad_token, model.device), past_key_values=caches[-1], use_cache=True,
                            logits_to_keep=1).logits[:, -1])
    return torch.cat(logits), batch_cache(caches, columns), plain


def close_gaps(staying: list[int]) -> list[int]:
    """Return the places of the rows that stay in an order that moves few: those at the end fill the gaps."""
    kept, last = set(staying), (place for place in staying if place >= len(staying))
    return [place if place in kept else next(last) for place in range(len(staying))]


def fit_context(prompts: list[list[int]], model: Any, task: Task) -> list[list[int]]:
    """Return the prompts with as many of their last tokens as the model's context has room for, before the new ones."""
    context = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    if context <= task.max_new_tokens:
        raise PipelineError(f"{task.name}: a budget of {task.max_new_tokens} new tokens leaves no room for a prompt in the model's "
                            f"context of {context}; give a smaller --max_new_tokens or use another model")
    return [prompt[-(context - task.max_new_tokens):] for prompt in prompts]


def generate_batch(model: Any, tokenizer: Any, prompts: list[list[int]], task: Task) -> list[dict[str, Any]]:
    """Decode greedily; return for each prompt {"text", "tokens", "ended"}, the new text only.

    Prompts are padded on the left, so that every row goes on at the same column.  A row that has ended leaves the batch, and
    its part of the cache with it; so do the columns that are padding in all rows that are left.
    """
    import torch

    prompts, device = fit_context(prompts, model, task), model.device
    ends = end_tokens(model, tokenizer)
    written = [Continuation(tokenizer, task, ends) for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows, lengths = [written[i] for i in by_length], [len(prompts[i]) for i in by_length]  # of the rows that are in the batch
    longest = lengths[0]
    columns = longest + task.max_new_tokens
    logits, cache, droppable = prefill(model, [prompts[i] for i in by_length], tokenizer.eos_token_id, columns)
    mask = torch.tensor([[0] * (longest - length) + [1] * (length + task.max_new_tokens) for length in lengths], device=device)
    positions, begin = torch.tensor(lengths, device=device)[:, None], 0
    for column in range(longest + 1, columns + 1):
        chosen = logits.max(dim=-1).indices  # the first of equal ones, as argmax; on a CPU in bf16, four times as fast
        staying = [place for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)) if not row.add(token)]
        if not staying:
            break
        if len(staying) < len(rows):
            order = close_gaps(staying)
            rows, lengths = [rows[place] for place in order], [lengths[place] for place in order]
            keep = torch.tensor(order, device=device)
            cache.batch_select_indices(keep)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
            if droppable:
                begin = longest - max(lengths)
                drop_columns(cache, begin)
        logits = model(input_ids=chosen[:, None], attention_mask=mask[:, begin:column], position_ids=positions, past_key_values=cache,
                       use_cache=True, logits_to_keep=1).logits[:, -1]
        positions = positions + 1
    return [row.result() for row in written]


def generate_with_vllm(model: Any, tokenizer: Any, prompts: list[list[int]], task: Task) -> list[dict[str, Any]]:
    """Do as `generate_batch` with a model of `load_vllm`.  Not yet run: written from vLLM's documentation, without a GPU.

    vLLM cannot ask the stop rule: it writes up to the budget or an end token, and what the rule would have ended is cut.
    """
    from vllm import SamplingParams, TokensPrompt

    ends = end_tokens(model, tokenizer)
    sampling = SamplingParams(temperature=0.0, max_tokens=task.max_new_tokens, stop_token_ids=sorted(ends), detokenize=False)
    outputs = model.generate([TokensPrompt(prompt_token_ids=p) for p in fit_context(prompts, model, task)], sampling, use_tqdm=False)
    results = []
    for output in outputs:
        written = Continuation(tokenizer, task, ends)
        over = any(written.add(token) for token in output.outputs[0].token_ids)
        written.ended |= not over  # by an end token that vLLM kept to itself
        results.append(written.result())
    return results


def generate_within_memory(generate: Callable[[list[list[int]]], list[dict[str, Any]]], prompts: list[list[int]],
                           at_most: int) -> tuple[list[dict[str, Any]], int]:
    """Return the results of all prompts, `at_most` of them decoded together, and how many of them the memory holds.

    Where it holds fewer, the batch is halved, as often as needed.  Each result also says with how many "rows" it was made.
    """
    import torch

    results: list[dict[str, Any]] = []
    while len(results) < len(prompts):
        part = prompts[len(results):len(results) + at_most]
        try:
            results += [result | {"rows": len(part)} for result in generate(part)]
            continue
        except torch.OutOfMemoryError as error:
            if len(part) == 1:
                raise PipelineError(f"out of memory with a single prompt of {len(part[0])} tokens; free memory, give a smaller "
                                    "--max_new_tokens or a --precision of 16 bits, or use a smaller model") from error
        # outside of the except block, which holds what the failed batch had in memory
        at_most = (len(part) + 1) // 2
        torch.cuda.empty_cache()
        print(f"out of memory with {len(part)} prompts at once; going on with {at_most}", file=sys.stderr)
    return results, at_most


def plan_batches(lengths: list[int], batch_size: int, new_tokens: int) -> list[list[int]]:
    """Return the examples in batches of like length, the longest first: what does not fit in memory shows at once.

    A batch has at most `batch_size` rows and BATCH_TOKENS tokens.  The plan depends on nothing else: a rerun repeats it.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = batches and (len(batches[-1]) + 1) * (lengths[batches[-1][0]] + new_tokens) <= BATCH_TOKENS
        if not fits or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(i)
    return batches


# ---------------------------------------------------------------------------------------------------------------
# Files of results that a rerun goes on with
# ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Processes:
    """The processes that torchrun started together, and which of them this is; without torchrun there is one."""
    rank: int = 0
    number: int = 1

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.number > 1:
            import torch.distributed

            torch.distributed.barrier()


ALONE = Processes()


def join_processes() -> Processes:
    """Return the processes that torchrun started, after they have found each other; each takes the GPU of its number."""
    processes = Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if processes.number > 1:
        import torch

        if torch.cuda.is_available():
            local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= gpus:
                raise PipelineError(f"torchrun: process {local + 1} on a machine with {gpus} GPUs; give --nproc_per_node {gpus}")
            torch.cuda.set_device(local)
        # they wait for the slowest of them, for hours with a large set
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    return processes


def prediction_file(folder: Path, source: ModelSource, task: Task, header: dict[str, Any]) -> Path:
    """Return the file of a model's predictions: named for the model, the set and a hash of all that they depend on."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
    model = re.sub(r"[^A-Za-z0-9]+", "-", Path(source.name).name if looks_like_path(source.name) else source.name).strip("-")
    return folder / f"{model}.{task.name.split()[0].lower()}.{digest}.jsonl"


def note_other_settings(file: Path, header: dict[str, Any]) -> None:
    """Where `file` is not there, say in what the settings of this model's newest other predictions of the set differ."""
    others = [] if file.is_file() else [other for other in file.parent.glob(f"{file.name.rsplit('.', 2)[0]}.*.jsonl")
                                        if not other.name.endswith(".losses.jsonl")]
    if others:
        newest = max(others, key=lambda other: other.stat().st_mtime)
        with open(newest, encoding="utf-8") as lines:
            then = json.loads(next(lines, "{}")).get("header", {})
        print(f"{newest.name} differs in {', '.join(key for key in header if then.get(key) != header[key])}; {file.name} is begun",
              file=sys.stderr)


def read_rows(file: Path, header: dict[str, Any], batches: list[list[int]], task: Task) -> dict[int, dict[str, Any]]:
    """Return the rows of whole batches in `file`, by example; the batches in it follow the plan, and some may be missing.

    What follows a line that is torn or damaged, and a batch that is not whole, is left out; with another header, everything.
    """
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []  # what follows the last line end is torn
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(unsealed_row(line))
        except ValueError:
            print(f"{file}, line {number}: damaged; what follows is done again", file=sys.stderr)
            break
    done: dict[int, dict[str, Any]] = {}
    if rows and rows[0] != {"header": header}:
        print(f"{file}: its header is not that of this run; it is begun anew", file=sys.stderr)
    elif rows:
        place = 1
        for batch in batches:
            found = rows[place:place + len(batch)]
            if [row.get("id") for row in found] == [task.examples[i].id for i in batch]:
                done.update(zip(batch, found, strict=True))
                place += len(batch)
    return done


def sealed_row(row: dict[str, Any]) -> str:
    """Return the row as a line of JSON with a checksum of the rest as its last field."""
    text = json.dumps(row, ensure_ascii=False)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'


def unsealed_row(line: bytes) -> dict[str, Any]:
    """Return the row of a line, without its checksum; ValueError where that is not the line's."""
    row = json.loads(line)
    if not isinstance(row, dict) or row.pop("crc32", None) != zlib.crc32(json.dumps(row, ensure_ascii=False).encode()):
        raise ValueError("not the row that was written")
    return row


def join_files(file: Path, header: dict[str, Any], batches: list[list[int]], task: Task) -> dict[int, dict[str, Any]]:
    """Bring the rows of `file` and of the parts beside it into `file`, whole batches in the order of the plan; return them."""
    parts = sorted(file.parent.glob(f"{file.name}.part*"))
    done: dict[int, dict[str, Any]] = {}
    for source in (file, *parts):
        done.update(read_rows(source, header, batches, task))
    rows = [{"header": header}, *(done[i] for batch in batches for i in batch if i in done)]
    text = "".join(map(sealed_row, rows)).encode()
    if not file.is_file() or file.read_bytes() != text:
        with atomic_file(file, binary=True) as out:
            out.write(text)
    for part in parts:
        part.unlink()
    return done


def complete_rows(file: Path, header: dict[str, Any], batches: list[list[int]], task: Task,
                  make: Callable[[list[int]], list[dict[str, Any]]], what: str, processes: Processes) -> list[dict[str, Any]]:
    """Return the rows of all examples, reading the whole batches that an earlier run left in `file` and appending the others.

    `make(batch)` returns the rows of a batch.  Each of several processes appends its share to a part beside `file`, and
    the first brings them together into what one process would have written; the others return an empty list.
    """
    import torch
    from tqdm import tqdm

    if processes.rank == 0:
        found = len(join_files(file, header, batches, task))
        if found:
            print(f"{what}: {found} of {len(task.examples)} examples found in {file}", file=sys.stderr)
    processes.wait()
    done = read_rows(file, header, batches, task)
    missing = [batch for batch in batches if batch[0] not in done]
    in_order = processes.number == 1 and missing == batches[len(batches) - len(missing):]
    own = file if in_order else file.with_name(f"{file.name}.part{processes.rank}")
    share = missing[processes.rank::processes.number]
    with (open(own, "a", encoding="utf-8") as out, torch.inference_mode(),
          tqdm(total=sum(map(len, share)), desc=what, unit=" examples", disable=True if processes.rank else None) as bar):
        if not in_order:
            out.write(sealed_row({"header": header}))
        for batch in share:
            for i, row in zip(batch, make(batch), strict=True):
                done[i] = {"id": task.examples[i].id} | row
                out.write(sealed_row(done[i]))
            out.flush()
            bar.update(len(batch))
    processes.wait()
    if processes.rank:
        return []
    done = done if in_order else join_files(file, header, batches, task)
    return [done[i] for i in range(len(task.examples))]


def predict(source: ModelSource, model: Callable[[], Any], tokenizer: Any, task: Task, header: dict[str, Any], folder: Path,
            batch_size: int, generate: Callable[..., list[dict[str, Any]]] = generate_batch, processes: Processes = ALONE) -> list[str]:
    """Return the raw predictions of every example, from the file of an earlier run where it has them.

    `model` loads the model, and is called only if something is missing.
    """
    # a model has to go on from something, even where the prompt is empty
    prompts = [ids or [tokenizer.eos_token_id] for ids in encode_prompts(tokenizer, [example.prompt for example in task.examples])]
    file, at_most = prediction_file(folder, source, task, header), batch_size
    if processes.rank == 0:
        note_other_settings(file, header)

    def make(batch: list[int]) -> list[dict[str, Any]]:
        nonlocal at_most
        results, at_most = generate_within_memory(lambda part: generate(model(), tokenizer, part, task), [prompts[i] for i in batch],
                                                  at_most)
        return [{"prediction": result["text"], "normalized": task.normalize(result["text"]), "reference": task.examples[i].reference,
                 "tokens": result["tokens"], "ended": result["ended"], "rows": result["rows"]}
                for i, result in zip(batch, results, strict=True)]

    rows = complete_rows(file, header, plan_batches([len(p) for p in prompts], batch_size, task.max_new_tokens), task, make,
                         f"{Path(source.name).name} on {task.name}", processes)
    return [row["prediction"] for row in rows]


# ---------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------

LOSS = "loss, nats a token"  # of the reference behind its prompt; its exponential is the perplexity
SHOWN = ("edit similarity", "BLEU", "first line exact, %", LOSS)  # in the table that is printed
LENGTH = "mean length, tokens"  # of the predictions
LOWER_IS_BETTER = {LOSS}
LOSS_BATCH_TOKENS = 4096  # a batch of the loss, padding included
BASELINE_EXAMPLES = 20_000  # training examples among which the most similar one is looked for
_WORD = re.compile(r"\w+")


def batch_losses(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """Return for each (prompt, completion), as token ids, the completion's negative log likelihood in nats, and its tokens.

    Rows are padded on the left: completions then end at the same column, and only the last columns pass through the head.
    Where a row is longer than the model's context, the prompt loses its beginning, and then the completion its end.
    """
    import torch

    context = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    ends = [len(completion[:context - 1]) for _, completion in rows]
    texts = [prompt[-(context - end):] + completion[:end] for (prompt, completion), end in zip(rows, ends, strict=True)]
    inputs, width = left_padded(texts, 0, model.device), max(ends)
    ids, longest = inputs["input_ids"], max(map(len, texts))
    logits = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]  # (rows, width, vocabulary)
    return [(torch.nn.functional.cross_entropy(logits[i, width - end:].float(), ids[i, longest - end:], reduction="sum").item(), end)
            for i, end in enumerate(ends)]


def reference_losses(source: ModelSource, model: Callable[[], Any], tokenizer: Any, task: Task, header: dict[str, Any],
                     folder: Path, processes: Processes = ALONE) -> list[tuple[float, int]]:
    """Return (nats, tokens) of each example's reference, reading those that are there and appending the others.

    `header` is that of the predictions, of which the loss depends on a part.  Prompt and completion are tokenized apart,
    as train.py does it.
    """
    keys = ("model", "base_model", "set", "examples", *task.settings, "precision", "device", "torch", "transformers")
    header = {"loss": "reference", "batch_tokens": LOSS_BATCH_TOKENS} | {key: header[key] for key in keys}
    file = prediction_file(folder, source, task, header).with_suffix(".losses.jsonl")
    prompts = encode_prompts(tokenizer, [example.prompt for example in task.examples])
    completions = tokenizer([example.completion for example in task.examples], add_special_tokens=False, split_special_tokens=True,
                            return_attention_mask=False)["input_ids"]
    rows = [(prompt or [tokenizer.eos_token_id], completion) for prompt, completion in zip(prompts, completions, strict=True)]
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: (lengths[i], i)):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > LOSS_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)

    def make(batch: list[int]) -> list[dict[str, Any]]:
        return [{"nats": nats, "tokens": tokens} for nats, tokens in batch_losses(model(), [rows[i] for i in batch])]

    found = complete_rows(file, header, batches, task, make, f"loss of {Path(source.name).name} on {task.name}", processes)
    return [(row["nats"], row["tokens"]) for row in found]


def edit_similarity(reference: str, prediction: str) -> float:
    """Return the edit similarity of one pair, 0 to 100: rapidfuzz's normalized indel ratio, which the evaluator rounds."""
    from rapidfuzz import fuzz

    return fuzz.ratio(reference, prediction)


class Scores:
    """The scores of one model on one set, for the whole set and for resamples of it.

    Every score is a function of sums over examples; the sums are kept for each group (source file), because
    examples of one file are not independent.  Without `lengths` (tokens of the predictions) or `losses` (nats and
    tokens of the references) the scores that need them are NaN.
    """
    NAMES = ("edit similarity", "edit similarity, unrounded", "BLEU", "first line exact, %", LOSS, LENGTH)

    def __init__(self, task: Task, predictions: list[str], lengths: list[int] | None = None,
                 losses: list[tuple[float, int]] | None = None):
        references = [example.reference for example in task.examples]
        normalized = [task.normalize(prediction) for prediction in predictions]
        self.similarity = np.array([edit_similarity(r, p) for r, p in zip(references, normalized, strict=True)])
        exact = np.array([100.0 * (first_line(prediction, task.normalize) == example.first_line)
                          for prediction, example in zip(predictions, task.examples, strict=True)])
        missing = np.full(len(references), np.nan)
        nats, tokens = (missing, missing) if losses is None else zip(*losses, strict=True)
        columns = np.column_stack([np.ones(len(references)), self.similarity.round(), self.similarity, exact,
                                   missing if lengths is None else lengths, nats, tokens, corpus_statistics(references, normalized)])
        _, group = np.unique([example.group for example in task.examples], return_inverse=True)
        self.sums = np.zeros((group.max() + 1, columns.shape[1]))
        np.add.at(self.sums, group, columns)

    @staticmethod
    def of(sums: np.ndarray) -> np.ndarray:
        """Return (..., scores) in the order of NAMES for (..., columns) sums."""
        rounded, similarity, exact, length = np.moveaxis(sums[..., 1:5] / sums[..., :1], -1, 0)
        nats, tokens = sums[..., 5], sums[..., 6]
        loss = np.divide(nats, tokens, out=np.full_like(nats, np.nan), where=tokens > 0)
        return np.stack([rounded, similarity, bleu_of_sums(sums[..., 7:]), exact, loss, length], axis=-1)


def bootstrap_sums(tables: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return for each (groups, columns) table the (RESAMPLES, columns) sums of resamples, the same groups in each."""
    groups = len(tables[0])
    generator = np.random.default_rng(seed)
    blocks: list[list[np.ndarray]] = [[] for _ in tables]
    for _ in range(0, RESAMPLES, RESAMPLE_BLOCK):
        drawn = generator.integers(groups, size=(RESAMPLE_BLOCK, groups))
        weights = np.stack([np.bincount(row, minlength=groups) for row in drawn]).astype(np.float64)
        for table, found in zip(tables, blocks, strict=True):
            found.append(weights @ table)
    return [np.concatenate(found) for found in blocks]


def compare(base: Scores, tuned: Scores, seed: int) -> dict[str, dict[str, Any]]:
    """Return for each score both values, their difference, 95 % intervals, and the p of no difference (two-sided).

    p: the share of random exchanges of the two models' predictions, group by group, whose difference is as large.
    A score that one of them has not (the loss of a trivial baseline) is left out.
    """
    resampled = [Scores.of(sums) for sums in bootstrap_sums([base.sums, tuned.sums], seed)]
    values = [Scores.of(scores.sums.sum(axis=0)) for scores in (base, tuned)]
    generator = np.random.default_rng(seed + 1)
    exceeded = np.zeros(len(Scores.NAMES))
    observed = np.abs(values[1] - values[0])
    for _ in range(0, RESAMPLES, RESAMPLE_BLOCK):
        exchange = generator.integers(0, 2, size=(RESAMPLE_BLOCK, len(base.sums))).astype(np.float64)
        moved = exchange @ (tuned.sums - base.sums)
        difference = Scores.of(tuned.sums.sum(axis=0) - moved) - Scores.of(base.sums.sum(axis=0) + moved)
        exceeded += (np.abs(difference) >= observed - 1e-12).sum(axis=0)
    result = {}
    for k, name in enumerate(Scores.NAMES):
        if np.isnan(values[0][k] + values[1][k]):
            continue

        def interval(numbers: np.ndarray, k: int = k) -> list[float]:
            return np.nanpercentile(numbers[:, k], INTERVAL).round(4).tolist()
        result[name] = {"base": round(float(values[0][k]), 4), "base_interval": interval(resampled[0]),
                        "fine_tuned": round(float(values[1][k]), 4), "fine_tuned_interval": interval(resampled[1]),
                        "difference": round(float(values[1][k] - values[0][k]), 4),
                        "difference_interval": interval(resampled[1] - resampled[0]),
                        "p": round(float((exceeded[k] + 1) / (RESAMPLES + 1)), 5), "lower_is_better": name in LOWER_IS_BETTER}
    return result


def trivial_predictions(task: Task, train: Any, seed: int) -> dict[str, list[str]]:
    """Return what needs no model, by name: nothing, the prompt's last lines (as many as the median reference has), and,
    where `train` has completions of the task's language, that of the most similar training prompt."""
    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip()]

    median = max(1, round(float(np.median([len(lines(example.completion)) for example in task.examples]))))
    prompts = [example.prompt for example in task.examples]
    found = {"nothing": [""] * len(prompts),
             f"the prompt's last {median} line{'s' * (median > 1)}": ["\n".join(lines(prompt)[-median:]) for prompt in prompts]}
    if train is not None and len(train):
        found["most similar training completion"] = similar_completions(prompts, train, seed)
    return found


def similar_completions(prompts: list[str], train: Any, seed: int) -> list[str]:
    """Return for each prompt the completion of the training prompt that shares most words with it.

    Similarity: Jaccard over the sets of words, among at most BASELINE_EXAMPLES training examples drawn with the seed;
    the first of equals.  Memory: 4 bytes for each word of a training prompt, and one batch of texts.
    """
    chosen = draw(len(train), BASELINE_EXAMPLES, seed)
    rows_of: dict[str, array] = {}
    sizes: list[int] = []
    for batch in train.select(chosen).select_columns("prompt").iter(1000):
        for prompt in batch["prompt"]:
            words = set(_WORD.findall(prompt))
            for word in words:
                rows_of.setdefault(word, array("i")).append(len(sizes))
            sizes.append(len(words))
    size, best = np.array(sizes), []
    for words in (set(_WORD.findall(prompt)) for prompt in prompts):
        rows = [np.frombuffer(rows_of[word], dtype=np.intc) for word in words if word in rows_of]
        shared = np.bincount(np.concatenate(rows), minlength=len(size)) if rows else np.zeros(len(size))
        best.append(chosen[int(np.argmax(shared / np.maximum(1, size + len(words) - shared)))])
    return [train[row]["completion"] for row in best]


def against_baselines(task: Task, models: list[Scores], train: Any, seed: int) -> dict[str, Any]:
    """Return for each trivial baseline its scores, and what the base (`models[0]`) and the fine-tuned model gain on it."""
    result: dict[str, Any] = {}
    for name, predictions in trivial_predictions(task, train, seed).items():
        baseline = Scores(task, predictions)
        cells = [compare(baseline, scores, seed) for scores in models]
        result[name] = {"scores": {score: {"value": cell["base"], "interval": cell["base_interval"]} for score, cell in cells[0].items()}}
        for which, compared in zip(("base", "fine_tuned"), cells, strict=True):
            result[name][which] = {score: {key: cell[key] for key in ("difference", "difference_interval", "p")}
                                   for score, cell in compared.items()}
    return result


# ---------------------------------------------------------------------------------------------------------------
# What the user sees
# ---------------------------------------------------------------------------------------------------------------

def shown_with_interval(value: float, interval: list[float], sign: str = "") -> str:
    """Return e.g. `37.53 [33.61, 42.53]`."""
    return f"{value:{sign}.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def make_table(metrics: dict[str, Any], scores: tuple[str, ...] = SHOWN) -> Any:
    """Return the pandas table of the comparison; without the column of the set's name it is at most 100 characters wide."""
    import pandas

    rows = []
    for set_name, entry in metrics["sets"].items():
        for score, cell in ((score, entry["scores"][score]) for score in scores if score in entry["scores"]):
            base, tuned, difference = (shown_with_interval(cell[key], cell[f"{key}_interval"], "+" if key == "difference" else "")
                                       for key in ("base", "fine_tuned", "difference"))
            rows.append({"set": f"{set_name}, n={entry['examples']}", "score": score, "base": base, "fine-tuned": tuned,
                         "difference": difference, "p": f"{cell['p']:.4f}{' *' if cell['p'] < SIGNIFICANT else ''}"})
    return pandas.DataFrame(rows)


def baseline_table(metrics: dict[str, Any]) -> Any:
    """Return the pandas table of the trivial baselines, at most 100 characters wide without the set; empty without --baselines."""
    import pandas

    return pandas.DataFrame([{"set": f"{set_name}, n={entry['examples']}", "trivial baseline": name,
                              **{score: shown_with_interval(**baseline["scores"][score]) for score in SHOWN if score in baseline["scores"]}}
                             for set_name, entry in metrics["sets"].items() for name, baseline in entry.get("baselines", {}).items()])


def table_as_markdown(table: Any) -> str:
    """Return the table in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def draw_chart(metrics: dict[str, Any], file: Any) -> None:
    """Draw each score of both models with its 95 % interval as a PNG, a row a set."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = metrics["sets"]
    figure, axes = pyplot.subplots(len(sets), len(SHOWN), figsize=(3 * len(SHOWN), 3.2 * len(sets)), layout="constrained", squeeze=False)
    for row, (set_name, entry) in zip(axes, sets.items(), strict=True):
        for axis, score in zip(row, SHOWN, strict=True):
            cell = entry["scores"][score]
            for place, (key, color) in enumerate((("base", "#9aa5b1"), ("fine_tuned", "#7f52ff"))):
                low, high = cell[f"{key}_interval"]
                error = [[max(0, cell[key] - low)], [max(0, high - cell[key])]]
                axis.bar(place, cell[key], color=color, yerr=error, capsize=5, width=0.65)
            axis.set_xticks([0, 1], ["base", "fine-tuned"])
            axis.set_title(f"{set_name}\n{score}{' (less is better)' if score in LOWER_IS_BETTER else ''}", fontsize=9)
            axis.set_ylim(0, 1.08 * max(cell["base_interval"][1], cell["fine_tuned_interval"][1]) or 1)
            axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel("with 95 % interval", fontsize=9)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def draw_changes(changes: dict[str, np.ndarray], file: Any) -> None:
    """Draw how the edit similarity of the examples of each set changed, as a PNG of histograms."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(changes), figsize=(5 * len(changes), 3.4), layout="constrained", squeeze=False)
    for axis, (set_name, change) in zip(axes[0], changes.items(), strict=True):
        axis.hist(change, bins=np.arange(-105, 106, 10), color="#7f52ff")
        axis.axvline(change.mean(), color="black", linewidth=1, label=f"mean {change.mean():+.2f}")
        axis.set_title(f"{set_name}, n={len(change)}", fontsize=10)
        axis.set_xlabel("edit similarity of an example, fine-tuned minus base")
        axis.set_ylabel("examples")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def make_notes(metrics: dict[str, Any]) -> list[str]:
    """Return what belongs below the table: what was compared, how, what was lost, and what no model beats."""
    notes = [f"base: {metrics['base_model']}; fine-tuned: {metrics['fine_tuned']}",
             f"95 % bootstrap intervals, {RESAMPLES} resamples by source file; p: paired approximate randomization; "
             f"* significant at {SIGNIFICANT}; of the loss, less is better"]
    notes += [f"{name}: {entry['signature']}" for name, entry in metrics["sets"].items()]
    if any(entry.get("baselines") for entry in metrics["sets"].values()):
        notes.append("trivial baselines: as many last lines of the prompt as the median reference has; the completion of the training "
                     f"prompt with the largest Jaccard index of words, among at most {BASELINE_EXAMPLES} drawn")
    for name, entry in metrics["sets"].items():
        for score, cell in ((score, entry["scores"][score]) for score in SHOWN if score in entry["scores"]):
            worse = cell["difference"] > 0 if score in LOWER_IS_BETTER else cell["difference"] < 0
            if name.startswith("CodeXGLUE") and cell["p"] < SIGNIFICANT and worse:
                notes.append(f"WARNING: {score} on {name} became significantly worse: the model forgot some Python")
        for which, model in (("base", "the base model"), ("fine_tuned", "the fine-tuned model")):
            for baseline, found in entry.get("baselines", {}).items():
                missed = [score for score, cell in found[which].items()
                          if score in SHOWN and not (cell["difference"] > 0 and cell["p"] < SIGNIFICANT)]
                if missed:
                    notes.append(f"NOT BETTER: {model} on {name} does not significantly beat \"{baseline}\" in {', '.join(missed)}")
        if entry.get("baselines") and not any("training" in baseline for baseline in entry["baselines"]):
            notes.append(f"{name}: no train split in its language, so no baseline of the most similar training completion")
    return notes


def report(metrics: dict[str, Any], folder: Path) -> None:
    """Print the tables and write them as Markdown, with the chart and metrics.json."""
    import pandas

    tables = [table for table in (make_table(metrics), baseline_table(metrics)) if len(table)]
    notes = make_notes(metrics)
    with atomic_file(folder / "table.md") as file:
        file.write("\n".join(map(table_as_markdown, tables)) + "\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    write_json(folder / "metrics.json", metrics)
    with atomic_file(folder / "chart.png", binary=True) as file:
        draw_chart(metrics, file)
    with pandas.option_context("display.width", 200, "display.max_columns", None, "display.max_colwidth", None):
        for table in tables:
            for name, rows in table.groupby("set", sort=False):
                print(f"{name}\n{rows.drop(columns='set').to_string(index=False)}\n")
    print("\n".join(notes))


def summarize_change(change: np.ndarray) -> dict[str, Any]:
    """Return how many examples became better, stayed and became worse, and quantiles of the change."""
    percents = (0, 5, 25, 50, 75, 95, 100)
    return {"better": int((change > 0).sum()), "equal": int((change == 0).sum()), "worse": int((change < 0).sum()),
            "quantiles": dict(zip(map(str, percents), np.percentile(change, percents).round(2).tolist(), strict=True))}


def examples_to_show(change: np.ndarray, seed: int) -> dict[str, list[int]]:
    """Return ten examples, or all of fewer: at most three with the largest gains and losses each, and random ones."""
    order = np.argsort(change, kind="stable").tolist()
    losses = [i for i in order[:3] if change[i] < 0]
    gains = [i for i in order[:-4:-1] if change[i] > 0]
    rest = [i for i in range(len(change)) if i not in (*gains, *losses)]
    return {"largest gains": gains, "largest losses": losses,
            "random": random.Random(seed).sample(rest, min(len(rest), 10 - len(gains) - len(losses)))}


def fenced(text: str) -> str:
    """Return the text as a Markdown code block that no run of backticks in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"


def write_report(metrics: dict[str, Any], tasks: list[Task], predictions: dict[tuple[int, str], list[str]],
                 changes: dict[str, np.ndarray], folder: Path, seed: int) -> None:
    """Write report.md and change.png: every score, how the examples changed, and ten of each set side by side."""
    parts = [f"# {metrics['fine_tuned']} against {metrics['base_model']}\n", table_as_markdown(make_table(metrics, Scores.NAMES)),
             "\n".join(f"- {note}" for note in make_notes(metrics)) + "\n", "![Scores](chart.png)\n"]
    if len(table := baseline_table(metrics)):
        parts += ["## Trivial baselines\n", table_as_markdown(table)]
    parts += ["## Change of each example\n", "![Change of the edit similarity](change.png)\n"]
    for task in tasks:
        entry = metrics["sets"][task.name]
        change, perplexity = entry["change"], entry["perplexity"]
        quantiles = ", ".join(f"{percent} %: {value:+.1f}" for percent, value in change["quantiles"].items())
        parts += [f"## {task.name}\n",
                  f"- perplexity of the reference: base {shown_with_interval(perplexity['base'], perplexity['base_interval'])}, "
                  f"fine-tuned {shown_with_interval(perplexity['fine_tuned'], perplexity['fine_tuned_interval'])}\n"
                  f"- mean length in tokens: reference {entry['reference_length']:.1f}, base {entry['scores'][LENGTH]['base']:.1f}, "
                  f"fine-tuned {entry['scores'][LENGTH]['fine_tuned']:.1f}\n"
                  f"- edit similarity: {change['better']} examples became better, {change['equal']} stayed, {change['worse']} became "
                  f"worse; quantiles of the change: {quantiles}\n"]
        for kind, chosen in examples_to_show(changes[task.name], seed).items():
            for i in chosen:
                example = task.examples[i]
                parts += [f"### {task.name} {example.id}, {kind} ({changes[task.name][i]:+.1f})\n"]
                for title, text in (("prompt", example.prompt), ("reference", example.completion),
                                    ("base", predictions[0, task.name][i]), ("fine-tuned", predictions[1, task.name][i])):
                    parts += [f"{title}:\n", fenced(text)]
    with atomic_file(folder / "change.png", binary=True) as file:
        draw_changes(changes, file)
    with atomic_file(folder / "report.md") as file:
        file.write("\n".join(parts))


# ---------------------------------------------------------------------------------------------------------------
# The model card
# ---------------------------------------------------------------------------------------------------------------

CARD_METRICS = {"edit similarity": "edit_similarity", "BLEU": "bleu", "first line exact, %": "exact_match", LOSS: "loss"}
_MODEL_INDEX = re.compile(r"^model-index:[^\r\n]*(?:\r?\n(?:[ \t]*(?:#[^\r\n]*)?\r?\n)*[ \t-][^\r\n]*)*", re.MULTILINE)


def check_card_target(args: argparse.Namespace) -> None:
    """Raise PipelineError, before hours of work, where --update_card cannot write the card of --hf_repository."""
    if args.revision:
        raise PipelineError("--update_card: the card belongs to the branch main, and --revision names another; leave one of them out")
    if not Path(args.hf_repository).is_dir():
        check_hub_write(args.hf_repository)


def card_results(metrics: dict[str, Any], tasks: list[Task]) -> list[Any]:
    """Return the fine-tuned model's scores as the hub reads them (a list of EvalResult)."""
    from huggingface_hub import EvalResult

    results = []
    for task in tasks:
        entry = metrics["sets"][task.name]
        for score, kind in CARD_METRICS.items():
            cell = entry["scores"][score]
            results.append(EvalResult(
                task_type="text-generation", task_name="code completion", dataset_type=task.dataset, dataset_split="test",
                dataset_name=f"{task.name}: {task.dataset}", dataset_args={"settings": entry["signature"]}, metric_type=kind,
                metric_name=score, metric_value=cell["fine_tuned"],
                metric_args={"interval_95": cell["fine_tuned_interval"], "base_model": cell["base"], "p": cell["p"]}))
    return results


def card_with_scores(card: str, name: str, results: list[Any]) -> str:
    """Return a model card with `results` in the model-index of its front matter, in place of results of the same data sets.

    All else stays as it is, byte for byte.  PipelineError where the front matter cannot be read.
    """
    import yaml
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from huggingface_hub.repocard_data import eval_results_to_model_index
    from huggingface_hub.utils import yaml_dump

    line_end = "\r\n" if "\r\n" in card else "\n"
    if not REGEX_YAML_BLOCK.search(card):
        card = f"---{line_end}{line_end}---{line_end}{card}"
    block = REGEX_YAML_BLOCK.search(card)
    try:
        data = ModelCard(card).data
        replaced = {result.dataset_type for result in results}
        kept = [result for result in data.eval_results or [] if result.dataset_type not in replaced]
        index = {"model-index": eval_results_to_model_index(data.get("model_name", name), kept + results)}
        text = yaml_dump(index, sort_keys=False, line_break=line_end).rstrip()
        front, found = _MODEL_INDEX.subn(lambda match: text, block[2])
        front = front if found else line_end.join(part for part in (block[2].rstrip(), text) if part)
        written = card[:block.start(2)] + front + card[block.end(2):]
        if ModelCard(written).data.to_dict() != data.to_dict() | index:
            raise ValueError("its model-index cannot be told from the rest")
    except (ValueError, yaml.YAMLError) as error:
        raise PipelineError(f"--update_card: the front matter of {name}'s README.md cannot be updated: {str(error).splitlines()[0]}; mend "
                            "it and run again (the scores are kept)") from error
    return written


def updated_card_files(name: str, read: Callable[[str], bytes | None], results: list[Any]) -> dict[str, bytes]:
    """Return the new content of README.md and, where there is a manifest of ours, of manifest.json; `read` gives a file as it is."""
    try:
        text = (read("README.md") or f"# {name}\n".encode()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PipelineError(f"--update_card: {name}'s README.md is not UTF-8; mend it and run again (the scores are kept)") from error
    files = {"README.md": card_with_scores(text, name, results).encode()}
    manifest = json.loads(read("manifest.json") or b"{}")
    if isinstance(manifest, dict) and isinstance(manifest.get("outputs"), dict):
        manifest["outputs"]["README.md"] = hashlib.sha256(files["README.md"]).hexdigest()
        files["manifest.json"] = (json.dumps(sealed_manifest(manifest), indent=2, ensure_ascii=False) + "\n").encode()
    return files


def update_card(repository: str, results: list[Any]) -> str:
    """Write the results into the card of a folder, or of a hub repository in one commit; return what was written."""
    folder = Path(repository)
    if folder.is_dir():
        def read(file: str) -> bytes | None:
            return (folder / file).read_bytes() if (folder / file).is_file() else None

        with output_lock(folder):
            found = updated_card_files(folder.resolve().name, read, results)
            for file, content in found.items():
                with atomic_file(folder / file, binary=True) as out:
                    out.write(content)
        return str(folder / "README.md")
    with hub_errors("model", repository):
        commit = with_hub_retries(lambda: _commit_card(repository, results), repository)
    return f"the card of {repository} (commit {commit})"


def _commit_card(repository: str, results: list[Any]) -> str:
    """Read a hub repository's card, commit it with the scores on top of what was read, and compare; return the commit's identifier."""
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

    info = HfApi().model_info(repository)
    names = {sibling.rfilename for sibling in info.siblings or []}
    found = updated_card_files(repository, lambda file: Path(hf_hub_download(repository, file, revision=info.sha)).read_bytes()
                               if file in names else None, results)
    commit = HfApi().create_commit(repository, [CommitOperationAdd(file, content) for file, content in found.items()],
                                   commit_message="Add benchmark scores to the model card", parent_commit=info.sha).oid
    there = hub_file_hashes(repository, "model", commit)
    wrong = [file for file, content in found.items() if there.get(file) not in content_hashes(content)]
    if wrong:
        raise PipelineError(f"model {repository}: {wrong[0]} on the hub is not what was published (commit {commit}); run again")
    return commit


# ---------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------

def signature(task: Task, args: argparse.Namespace, precision: str) -> str:
    """Return the settings of a score on one line."""
    import rapidfuzz
    import torch
    import transformers

    return "|".join([f"data:{task.dataset}", f"n:{len(task.examples)}",
                     *(f"{key}:{value[:16] if 'hash' in key or 'sha' in key else value}" for key, value in task.settings.items()
                       if key != "file"),
                     f"budget:{task.max_new_tokens}", "decoding:greedy", f"precision:{precision}", f"batch:{args.batch_size}",
                     f"seed:{args.seed}", f"similarity:rapidfuzz-{rapidfuzz.__version__}", f"transformers:{transformers.__version__}",
                     f"torch:{torch.__version__}"])


def score_set(task: Task, predictions: list[list[str]], losses: list[list[tuple[float, int]]], tokenizer: Any, args: argparse.Namespace,
              precision: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return what metrics.json says of a set, and the change of each example's edit similarity; of both lists, the base is first."""
    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]]

    models = [Scores(task, texts, lengths(texts), nats) for texts, nats in zip(predictions, losses, strict=True)]
    cells, change = compare(*models, args.seed), models[1].similarity - models[0].similarity
    entry = {"examples": len(task.examples), "signature": signature(task, args, precision), "scores": cells,
             "perplexity": {key: np.exp(cells[LOSS][key]).round(4).tolist() for key in ("base", "base_interval", "fine_tuned",
                                                                                        "fine_tuned_interval")},
             "reference_length": round(float(np.mean(lengths([example.completion for example in task.examples]))), 4),
             "change": summarize_change(change)}
    if args.baselines:
        train = load_examples(args.dataset, (), verify=False).get("train") if task.name == "Kotlin" else None
        entry["baselines"] = against_baselines(task, models, train, args.seed)
    return entry, change


def warn_of_another_base(base: ModelSource, manifest: dict[str, Any] | None) -> None:
    """Say where the base model is not the one that the fine-tuned model's manifest names by its weights or its commit."""
    trained_on = {**((manifest or {}).get("adapter_manifest") or {}), **(manifest or {})}.get("base_model_hash")
    if trained_on and trained_on not in (base.weights_hash, base.commit):
        found = base.weights_hash or base.commit or "unknown"
        print(f"WARNING: --base_model {base.name} is not the model that was fine-tuned ({found[:12]}, not {trained_on[:12]}): "
              "the difference is not that of the training alone", file=sys.stderr)


def prediction_header(task: Task, source: ModelSource, base: ModelSource, args: argparse.Namespace, precision: str,
                      device: str) -> dict[str, Any]:
    """Return all that a model's predictions of a set depend on: the first line of their file."""
    import torch
    import transformers

    return {"model": source.identity, "base_model": base.identity if source.adapter else None, "set": task.name,
            "examples": [example.id for example in task.examples], **task.settings, "max_new_tokens": task.max_new_tokens,
            "decoding": "greedy", "engine": args.engine, "precision": precision, "batch_size": args.batch_size,
            "batch_tokens": BATCH_TOKENS, "prefill_padding": PREFILL_PADDING,
            "device": device.split(",")[0],  # not the number of threads
            "torch": torch.__version__, "transformers": transformers.__version__}


def evaluate(sources: list[ModelSource], tasks: list[Task], args: argparse.Namespace, precision: str, device: str, tokenizer: Any,
             processes: Processes) -> tuple[dict[tuple[int, str], list[str]], dict[tuple[int, str], list[tuple[float, int]]]]:
    """Return each model's predictions, and the (nats, tokens) of each reference, by (number of the model, name of the set).

    Both come from files in --output_dir as far as these go.  Of several processes, only the first gets them.
    """
    predictions: dict[tuple[int, str], list[str]] = {}
    losses: dict[tuple[int, str], list[tuple[float, int]]] = {}
    folder = args.output_dir / "predictions"
    for which, source in enumerate(sources):
        # each is loaded where it is needed first, and let go before the next
        model = functools.cache(lambda source=source: load_model(source, sources[0], precision))
        writer = model if args.engine == "transformers" else functools.cache(lambda source=source: load_vllm(source, precision))
        generate = generate_batch if writer is model else generate_with_vllm
        headers = {task.name: prediction_header(task, source, sources[0], args, precision, device) for task in tasks}
        for task in tasks:
            predictions[which, task.name] = predict(source, writer, tokenizer, task, headers[task.name], folder, args.batch_size, generate,
                                                    processes)
        if writer is not model:
            writer.cache_clear()
        for task in tasks:
            losses[which, task.name] = reference_losses(source, model, tokenizer, task, headers[task.name], folder, processes)
        model.cache_clear()
    return predictions, losses


def benchmark(args: argparse.Namespace) -> None:
    """Compare --base_model and --hf_repository on both sets and write the results to --output_dir."""
    started = time.time()
    if args.update_card:
        check_card_target(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tasks = [codexglue_task(args.codexglue_file, args.sample, args.seed),
             kotlin_task(args.dataset, args.sample, args.seed, args.max_new_tokens)]
    sources = [identify_model(args.base_model, None), identify_model(args.hf_repository, args.revision)]
    if sources[0].adapter:
        raise PipelineError(f"--base_model {args.base_model}: is an adapter; name the model that it was trained on")
    check_adapter_base(sources[1], args.base_model)
    fine_tuned_manifest = find_manifest(args.hf_repository, revision=args.revision)
    dataset_manifest = find_manifest(args.dataset, "dataset")
    warn_of_another_base(sources[0], fine_tuned_manifest)

    quiet_libraries()
    processes = join_processes()
    if args.engine == "vllm":
        check_vllm(sources, processes.number)
    precision = choose_precision(args.precision)
    device = device_name()
    if processes.rank == 0:
        print(f"device: {device}, {precision}; " + "; ".join(f"{task.name}: {len(task.examples)} examples, at most {task.max_new_tokens} "
                                                             "new tokens" for task in tasks), file=sys.stderr)
    tokenizer = load_tokenizer(args.base_model)
    # the first process holds the output for all
    with output_lock(args.output_dir / "metrics.json") if processes.rank == 0 else contextlib.nullcontext():
        if processes.rank == 0:
            for file in [*map(args.output_dir.joinpath, OUTPUTS), args.output_dir / "manifest.json",
                         *(args.output_dir / "predictions").glob("*.jsonl")]:
                sweep_leftovers(file)  # the lock on the metrics is on all of them
        predictions, losses = evaluate(sources, tasks, args, precision, device, tokenizer, processes)
        if processes.rank:
            return
        metrics = {"base_model": args.base_model, "base_identity": sources[0].identity, "fine_tuned": args.hf_repository,
                   "fine_tuned_identity": sources[1].identity, "fine_tuned_is_adapter": bool(sources[1].adapter),
                   "precision": precision, "device": device, "sets": {}}
        changes: dict[str, np.ndarray] = {}
        for task in tasks:
            metrics["sets"][task.name], changes[task.name] = score_set(
                task, [predictions[which, task.name] for which in (0, 1)], [losses[which, task.name] for which in (0, 1)], tokenizer, args,
                precision)
        report(metrics, args.output_dir)
        write_report(metrics, tasks, predictions, changes, args.output_dir, args.seed)
        outputs = {name: sha256_file(args.output_dir / name) for name in OUTPUTS}
        write_manifest(args.output_dir / "manifest.json", args, outputs, started, data={t.name: t.settings for t in tasks},
                       fine_tuned_manifest=fine_tuned_manifest, dataset_manifest=dataset_manifest)
    print(f"wrote {args.output_dir} in {duration(time.time() - started)}")
    if args.update_card:
        print(f"wrote the scores into {update_card(args.hf_repository, card_results(metrics, tasks))}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hf_repository", required=True, help="the fine-tuned model: a folder or hub name, a merged model or an adapter")
    add("--revision", help="branch, tag or commit of --hf_repository, e.g. adapter (default: main)")
    add("--base_model", default="microsoft/phi-1_5", help="the model that it was made from (default: %(default)s)")
    add("--dataset", default="data/kotlin_prepared_dataset", help="folder or hub data set with a test split (default: %(default)s)")
    add("--codexglue_file", type=Path, default=Path("data/test_codexglue.jsonl"),
        help="the Python set; fetched from the hub if it is missing (default: %(default)s)")
    add("--sample", type=non_negative_int, default=500, help="examples drawn from each set; 0: all (default: %(default)s)")
    add("--batch_size", type=positive_int, default=128,
        help="prompts decoded together, at most; fewer where they are long, and half as many where the memory ends (default: %(default)s)")
    add("--engine", choices=("transformers", "vllm"), default="transformers",
        help="what decodes; vllm has to be installed, and needs a GPU and merged models (default: %(default)s)")
    add("--max_new_tokens", type=non_negative_int, default=0,
        help="budget of a Kotlin prediction; 0: the data set's chunk length (default: %(default)s)")
    add("--precision", choices=("auto", "bf16", "fp16", "float32"), default="auto",
        help="of both models; auto: bf16 where the hardware has it, else fp16 on a GPU, float32 on a CPU (default: %(default)s)")
    add("--baselines", action="store_true", help="also score predictions that need no model, and say which of them a model does not beat")
    add("--update_card", action="store_true", help="write the scores into the model card (README.md) of --hf_repository")
    add("--output_dir", type=Path, default=Path("results"), help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="of the sample and the resamples (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(benchmark, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
