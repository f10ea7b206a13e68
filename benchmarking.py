"""Stage 5 of 5: compare the base and the fine-tuned model on Python (CodeXGLUE method generation) and on held-out Kotlin.

Reads   --hf_repository            the fine-tuned model: a folder or hub name, a merged model or an adapter
        --base_model               the model that it was made from
        data/test_codexglue.jsonl  {"signature", "docstring", "body", "id"}; fetched from the hub where it is missing
        --dataset                  its test split: {"prompt", "completion"}
Writes  results/predictions/       what each model wrote for each example, as JSONL; found again by the next run
        results/metrics.json       every score with its interval and its settings
        results/table.md, chart.png

Both models get the same prompts, precision, budget, batch size and stop rules, and decode greedily.  Only new tokens
are the prediction.  A Python prompt is the signature and then the docstring, well formed; generation stops where the
method ends, by its indentation.  A Kotlin prediction stops at the end-of-text token or after --max_new_tokens.
References and predictions pass the same normalization.  Scores: edit similarity (rapidfuzz's normalized indel ratio,
rounded an example, as CodeXGLUE's evaluator computes it with the Levenshtein package) and BLEU (bleu.py), 0 to 100.
Intervals are 95 % percentile bootstraps (Efron 1979); differences are paired and tested by approximate randomization
(Noreen 1989); examples of one file are resampled together.

Memory: one model at a time and the cache of one batch.  Time: linear in examples times new tokens.

Run:    python benchmarking.py --hf_repository models/merged
Quick:  python benchmarking.py --hf_repository models/merged --sample 50
"""
import argparse
import hashlib
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bleu import bleu_of_sums, corpus_statistics
from pipeline_io import (
    PipelineError,
    atomic_file,
    check_local_model,
    choose_precision,
    combined_hash,
    device_name,
    duration,
    encode_prompts,
    hub_errors,
    load_examples,
    load_tokenizer,
    looks_like_path,
    non_negative_int,
    output_lock,
    positive_int,
    quiet_libraries,
    read_jsonl,
    read_manifest,
    run_stage,
    sha256_file,
    torch_dtype,
    write_json,
    write_manifest,
)

CODEXGLUE_DATASET, CODEXGLUE_FILE = "microsoft/codexglue_method_generation", "test.jsonl"
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


@dataclass
class Task:
    """One benchmark set: its examples and how predictions of it are made and normalized."""
    name: str
    examples: list[Example]
    max_new_tokens: int
    normalize: Callable[[str], str]
    end_of_prediction: Callable[[str], int | None]  # offset where a text that is being generated has ended, if it has
    settings: dict[str, Any] = field(default_factory=dict)


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


def method_end(body: str) -> int | None:
    """Return where the body of a method at column 0 has ended in `body`, or None while it may go on.

    That is the start of the first line of code at column 0 that stands outside brackets and strings and does not
    continue the line before it.  A comment does not end a method, whatever its column.
    """
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
                        reference=codexglue_reference(rows[i]["body"]), group=i,
                        first_line=first_line(rows[i]["body"].replace("<EOL>", "\n"), codexglue_reference))
                for i in draw(len(rows), sample, seed)]
    return Task("CodeXGLUE (Python)", examples, CODEXGLUE_MAX_NEW_TOKENS, lambda text: normalize_python(text, common), method_end,
                {"file": path.name, "sha256": sha256_file(path), "prompt": "signature, docstring", "stop": "end of method"})


def kotlin_task(dataset: str, sample: int, seed: int, max_new_tokens: int) -> Task:
    """Return the task of the data set's test split; `max_new_tokens` 0: the length of its chunks."""
    data = load_examples(dataset, ("test",))["test"]
    if not len(data):
        raise PipelineError(f"--dataset {dataset}: its test split is empty; run preprocess_data.py on more files")
    manifest = (read_manifest(Path(dataset)) if Path(dataset).is_dir() else None) or {}
    budget = max_new_tokens or manifest.get("arguments", {}).get("chunk_tokens", DEFAULT_CHUNK_TOKENS)
    chosen = draw(len(data), sample, seed)
    rows = data.select(chosen)[:]
    groups = rows.get("source_line", chosen)
    examples = [Example(str(number), prompt, fold_white_space(completion), first_line(completion, fold_white_space), int(group))
                for number, prompt, completion, group in zip(chosen, rows["prompt"], rows["completion"], groups, strict=True)]
    identity = manifest.get("data_hash", data._fingerprint)
    return Task("Kotlin", examples, budget, fold_white_space, lambda text: None,
                {"data_hash": identity, "prompt": "one chunk", "stop": "end of text"})


# ---------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------

@dataclass
class ModelSource:
    """A model to be evaluated: its name, its identity, and the folder of its adapter if it is one."""
    name: str
    identity: str  # hub commit, or combined hash of the folder's weights
    adapter: str | None = None


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
        return ModelSource(name, combined_hash({file.name: sha256_file(file) for file in weights}), name if is_adapter else None)
    from huggingface_hub import model_info, snapshot_download

    with hub_errors("model", name):
        info = model_info(name, revision=revision)
        files = {sibling.rfilename for sibling in info.siblings or []}
        if "adapter_config.json" not in files:
            return ModelSource(name, info.sha)
        if "adapter_model.safetensors" not in files:
            raise PipelineError(f"model {name}: its adapter is not in safetensors; pickled weights are not loaded")
        if any(file.startswith("model") and file.endswith(".safetensors") for file in files):
            raise PipelineError(f"model {name}: holds an adapter and merged weights side by side; remove one of them")
        adapter = snapshot_download(name, revision=info.sha, allow_patterns=["adapter_config.json", "adapter_model.safetensors"])
    return ModelSource(name, info.sha, adapter)


def load_model(source: ModelSource, base_model: str, precision: str, revision: str | None) -> Any:
    """Return the model in evaluation mode; an adapter is merged into --base_model, whatever base it names."""
    import torch
    from transformers import AutoModelForCausalLM

    name = base_model if source.adapter else source.name
    with hub_errors("model", name):
        model = AutoModelForCausalLM.from_pretrained(name, revision=None if source.adapter else revision, dtype=torch_dtype(precision),
                                                     trust_remote_code=False, use_safetensors=True)
    if source.adapter:
        from peft import PeftModel

        named = json.loads((Path(source.adapter) / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
        if named != base_model:
            print(f"note: the adapter names {named} as its base; it is applied to --base_model {base_model}", file=sys.stderr)
        try:
            model = PeftModel.from_pretrained(model, source.adapter).merge_and_unload()
        except (ValueError, RuntimeError) as error:
            raise PipelineError(f"model {source.name}: its adapter does not fit {base_model}: {str(error).splitlines()[0]}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


# ---------------------------------------------------------------------------------------------------------------
# Generation
# ---------------------------------------------------------------------------------------------------------------

def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text: the tokenizer's and those of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    return {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured] if configured is not None else [])}


def generate_batch(model: Any, tokenizer: Any, prompts: list[list[int]], task: Task) -> list[dict[str, Any]]:
    """Decode greedily; return for each prompt {"text", "tokens", "ended"}, the new text only.

    Prompts are padded on the left, so that every row goes on at the same column.  A row that has ended leaves the
    batch, and its part of the cache with it.
    """
    import torch
    from transformers import DynamicCache

    longest, device = max(map(len, prompts)), model.device
    ids = torch.tensor([[tokenizer.eos_token_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    ends = end_tokens(model, tokenizer)
    results: list[dict[str, Any]] = [{"text": "", "tokens": 0, "ended": False} for _ in prompts]
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the prompts that are still in the batch
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    step = ids
    for _ in range(task.max_new_tokens):
        logits = model(input_ids=step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                       logits_to_keep=1).logits[:, -1]
        chosen = logits.argmax(dim=-1)
        staying = []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if token in ends:
                results[row].update(ended=True)
                continue
            written[row].append(token)
            text = tokenizer.decode(written[row], skip_special_tokens=True)
            end = task.end_of_prediction(text)
            results[row].update(text=text if end is None else text[:end], tokens=len(written[row]), ended=end is not None)
            if end is None:
                staying.append(place)
        if not staying:
            break
        if len(staying) < len(rows):
            keep = torch.tensor(staying, device=device)
            cache.batch_select_indices(keep)
            rows, chosen, mask, positions = [rows[i] for i in staying], chosen[keep], mask[keep], positions[keep]
        step = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return results


def plan_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Return the examples in batches of like length; the plan depends on nothing else, so that a rerun repeats it."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[i:i + batch_size] for i in range(0, len(order), batch_size)]


def prediction_file(folder: Path, source: ModelSource, task: Task, header: dict[str, Any]) -> Path:
    """Return the file of a model's predictions: named for the model, the set and a hash of all that they depend on."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
    model = re.sub(r"[^A-Za-z0-9]+", "-", Path(source.name).name if looks_like_path(source.name) else source.name).strip("-")
    return folder / f"{model}.{task.name.split()[0].lower()}.{digest}.jsonl"


def read_predictions(file: Path, header: dict[str, Any], batches: list[list[int]], task: Task) -> dict[int, dict[str, Any]]:
    """Return the predictions of whole batches that an earlier run left in `file`, by example; drop what follows them.

    A torn last line, or a batch that is not whole, is made again.
    """
    done: dict[int, dict[str, Any]] = {}
    if not file.is_file():
        return done
    lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last line end is torn
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    kept = 0
    if rows and rows[0] == {"header": header}:
        kept = 1
        for batch in batches:
            found = rows[kept:kept + len(batch)]
            if [row.get("id") for row in found] != [task.examples[i].id for i in batch]:
                break
            done.update(zip(batch, found, strict=True))
            kept += len(batch)
    with open(file, "r+b") as out:
        out.truncate(sum(len(line) + 1 for line in lines[:kept]))
    return done


def predict(source: ModelSource, model: Callable[[], Any], tokenizer: Any, task: Task, header: dict[str, Any], folder: Path,
            batch_size: int) -> tuple[list[str], Path]:
    """Return the raw predictions of every example, reading those that are there and appending the others.

    `model` loads the model, and is called only if something is missing.
    """
    import torch
    from tqdm import tqdm

    prompts = encode_prompts(tokenizer, [example.prompt for example in task.examples])
    batches = plan_batches([len(p) for p in prompts], batch_size)
    file = prediction_file(folder, source, task, header)
    file.parent.mkdir(parents=True, exist_ok=True)
    done = read_predictions(file, header, batches, task)
    if done:
        print(f"{source.name} on {task.name}: {len(done)} of {len(prompts)} predictions found in {file}", file=sys.stderr)
    with (open(file, "a", encoding="utf-8") as out, torch.inference_mode(),
          tqdm(total=len(prompts), initial=len(done), desc=f"{Path(source.name).name} on {task.name}", unit=" examples",
               disable=None) as bar):
        if not done:
            out.truncate(0)
            out.write(json.dumps({"header": header}) + "\n")
        for batch in batches[sum(1 for b in batches if b[0] in done):]:
            found = generate_batch(model(), tokenizer, [prompts[i] for i in batch], task)
            for i, result in zip(batch, found, strict=True):
                example = task.examples[i]
                done[i] = {"id": example.id, "prediction": result["text"], "normalized": task.normalize(result["text"]),
                           "reference": example.reference, "tokens": result["tokens"], "ended": result["ended"]}
                out.write(json.dumps(done[i], ensure_ascii=False) + "\n")
            out.flush()
            bar.update(len(batch))
    return [done[i]["prediction"] for i in range(len(prompts))], file


# ---------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------

def edit_similarity(reference: str, prediction: str) -> int:
    """Return the evaluator's edit similarity of one pair, 0 to 100: rapidfuzz's normalized indel ratio, rounded."""
    from rapidfuzz import fuzz

    return round(fuzz.ratio(reference, prediction))


class Scores:
    """The scores of one model on one set, for the whole set and for resamples of it.

    Every score is a function of sums over examples; the sums are kept for each group (source file), because
    examples of one file are not independent.
    """
    NAMES = ("edit similarity", "BLEU", "first line exact, %")

    def __init__(self, task: Task, predictions: list[str]):
        references = [example.reference for example in task.examples]
        normalized = [task.normalize(prediction) for prediction in predictions]
        similarity = np.array([edit_similarity(r, p) for r, p in zip(references, normalized, strict=True)], dtype=np.float64)
        exact = np.array([100.0 * (first_line(prediction, task.normalize) == example.first_line)
                          for prediction, example in zip(predictions, task.examples, strict=True)])
        columns = np.column_stack([np.ones(len(references)), similarity, exact, corpus_statistics(references, normalized)])
        _, group = np.unique([example.group for example in task.examples], return_inverse=True)
        self.sums = np.zeros((group.max() + 1, columns.shape[1]))
        np.add.at(self.sums, group, columns)

    @staticmethod
    def of(sums: np.ndarray) -> np.ndarray:
        """Return (..., 3) scores in the order of NAMES for (..., columns) sums."""
        return np.stack([sums[..., 1] / sums[..., 0], bleu_of_sums(sums[..., 3:]), sums[..., 2] / sums[..., 0]], axis=-1)


def bootstrap_sums(tables: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return for each (groups, columns) table the (RESAMPLES, columns) sums of resamples, the same groups in each."""
    groups = len(tables[0])
    generator = np.random.default_rng(seed)
    blocks: list[list[np.ndarray]] = [[] for _ in tables]
    for _ in range(0, RESAMPLES, RESAMPLE_BLOCK):
        weights = generator.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLE_BLOCK).astype(np.float64)
        for table, found in zip(tables, blocks, strict=True):
            found.append(weights @ table)
    return [np.concatenate(found) for found in blocks]


def compare(base: Scores, tuned: Scores, seed: int) -> dict[str, dict[str, Any]]:
    """Return for each score both values, their difference, 95 % intervals, and the p of no difference (two-sided).

    p: the share of random exchanges of the two models' predictions, group by group, whose difference is as large.
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
        def interval(numbers: np.ndarray, k: int = k) -> list[float]:
            return np.percentile(numbers[:, k], INTERVAL).round(4).tolist()
        result[name] = {"base": round(float(values[0][k]), 4), "base_interval": interval(resampled[0]),
                        "fine_tuned": round(float(values[1][k]), 4), "fine_tuned_interval": interval(resampled[1]),
                        "difference": round(float(values[1][k] - values[0][k]), 4),
                        "difference_interval": interval(resampled[1] - resampled[0]),
                        "p": round(float((exceeded[k] + 1) / (RESAMPLES + 1)), 5)}
    return result


# ---------------------------------------------------------------------------------------------------------------
# What the user sees
# ---------------------------------------------------------------------------------------------------------------

def make_table(metrics: dict[str, Any]) -> Any:
    """Return the pandas table of the comparison; without the column of the set's name it is at most 100 characters wide."""
    import pandas

    rows = []
    for set_name, entry in metrics["sets"].items():
        for score, cell in entry["scores"].items():
            def shown(key: str, cell: dict[str, Any] = cell) -> str:
                low, high = cell[f"{key}_interval"]
                sign = "+" if key == "difference" else ""
                return f"{cell[key]:{sign}.2f} [{low:.2f}, {high:.2f}]"
            mark = "" if cell["p"] >= SIGNIFICANT else " *"
            rows.append({"set": f"{set_name}, n={entry['examples']}", "score": score, "base": shown("base"),
                         "fine-tuned": shown("fine_tuned"), "difference": shown("difference"), "p": f"{cell['p']:.4f}{mark}"})
    return pandas.DataFrame(rows)


def table_as_markdown(table: Any) -> str:
    """Return the table in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def draw_chart(metrics: dict[str, Any], path: Path) -> None:
    """Draw each score of both models with its 95 % interval as a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [(set_name, score, cell) for set_name, entry in metrics["sets"].items() for score, cell in entry["scores"].items()]
    figure, axes = pyplot.subplots(1, len(cells), figsize=(2.6 * len(cells), 3.6), layout="constrained")
    for axis, (set_name, score, cell) in zip(np.atleast_1d(axes), cells, strict=True):
        for place, (key, color) in enumerate((("base", "#9aa5b1"), ("fine_tuned", "#7f52ff"))):
            low, high = cell[f"{key}_interval"]
            error = [[max(0, cell[key] - low)], [max(0, high - cell[key])]]
            axis.bar(place, cell[key], color=color, yerr=error, capsize=5, width=0.65)
        axis.set_xticks([0, 1], ["base", "fine-tuned"])
        axis.set_title(f"{set_name}\n{score}", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel("score, 0 to 100, with 95 % interval", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report(metrics: dict[str, Any], folder: Path) -> None:
    """Print the table and write it as Markdown, with the chart and metrics.json."""
    import pandas

    table = make_table(metrics)
    notes = [f"base: {metrics['base_model']}; fine-tuned: {metrics['fine_tuned']}",
             f"95 % bootstrap intervals, {RESAMPLES} resamples by source file; p: paired approximate randomization; "
             f"* significant at {SIGNIFICANT}"]
    notes += [f"{name}: {entry['signature']}" for name, entry in metrics["sets"].items()]
    for name, entry in metrics["sets"].items():
        for score, cell in entry["scores"].items():
            if name.startswith("CodeXGLUE") and cell["p"] < SIGNIFICANT and cell["difference"] < 0:
                notes.append(f"WARNING: {score} on {name} fell significantly: the model forgot some Python")
    with atomic_file(folder / "table.md") as file:
        file.write(table_as_markdown(table) + "\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    write_json(folder / "metrics.json", metrics)
    with atomic_file(folder / "chart.png", binary=True) as file:
        draw_chart(metrics, file)
    with pandas.option_context("display.width", 200, "display.max_columns", None, "display.max_colwidth", None):
        for name, rows in table.groupby("set", sort=False):
            print(f"{name}\n{rows.drop(columns='set').to_string(index=False)}\n")
    print("\n".join(notes))


# ---------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------

def signature(task: Task, args: argparse.Namespace, precision: str) -> str:
    """Return the settings of a score on one line."""
    import rapidfuzz
    import transformers

    return "|".join([f"n:{len(task.examples)}", *(f"{key}:{str(value)[:16]}" for key, value in task.settings.items()),
                     f"budget:{task.max_new_tokens}", "decoding:greedy", f"precision:{precision}", f"batch:{args.batch_size}",
                     f"seed:{args.seed}", f"similarity:rapidfuzz-{rapidfuzz.__version__}", f"transformers:{transformers.__version__}"])


def benchmark(args: argparse.Namespace) -> None:
    """Compare --base_model and --hf_repository on both sets and write the results to --output_dir."""
    started = time.time()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tasks = [codexglue_task(args.codexglue_file, args.sample, args.seed),
             kotlin_task(args.dataset, args.sample, args.seed, args.max_new_tokens)]
    sources = [identify_model(args.base_model, None), identify_model(args.hf_repository, args.revision)]
    if sources[0].adapter:
        raise PipelineError(f"--base_model {args.base_model}: is an adapter; name the model that it was trained on")

    import torch
    import transformers

    quiet_libraries()
    precision = choose_precision(args.precision)
    device = device_name()
    print(f"device: {device}, {precision}; " + "; ".join(f"{task.name}: {len(task.examples)} examples, at most {task.max_new_tokens} "
                                                         "new tokens" for task in tasks), file=sys.stderr)
    tokenizer = load_tokenizer(args.base_model)
    predictions: dict[tuple[int, str], list[str]] = {}
    with output_lock(args.output_dir / "metrics.json"):
        for which, source in enumerate(sources):
            loaded: list[Any] = []

            def model(source: ModelSource = source, which: int = which, loaded: list = loaded) -> Any:
                if not loaded:
                    loaded.append(load_model(source, args.base_model, precision, args.revision if which else None))
                return loaded[0]

            for task in tasks:
                header = {"model": source.identity, "base_model": sources[0].identity if source.adapter else None, "set": task.name,
                          "examples": [example.id for example in task.examples], **task.settings, "max_new_tokens": task.max_new_tokens,
                          "decoding": "greedy", "precision": precision, "batch_size": args.batch_size, "device": device,
                          "torch": torch.__version__, "transformers": transformers.__version__}
                predictions[which, task.name], _ = predict(source, model, tokenizer, task, header, args.output_dir / "predictions",
                                                           args.batch_size)
        metrics = {"base_model": args.base_model, "base_identity": sources[0].identity, "fine_tuned": args.hf_repository,
                   "fine_tuned_identity": sources[1].identity, "fine_tuned_is_adapter": bool(sources[1].adapter),
                   "precision": precision, "device": device, "sets": {}}
        for task in tasks:
            both = [predictions[which, task.name] for which in (0, 1)]
            metrics["sets"][task.name] = {
                "examples": len(task.examples), "signature": signature(task, args, precision),
                "scores": compare(Scores(task, both[0]), Scores(task, both[1]), args.seed)}
        report(metrics, args.output_dir)
        outputs = {name: sha256_file(args.output_dir / name) for name in ("metrics.json", "table.md", "chart.png")}
        write_manifest(args.output_dir / "manifest.json", args, outputs, started, data={t.name: t.settings for t in tasks})
    print(f"wrote {args.output_dir} in {duration(time.time() - started)}")


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
    add("--batch_size", type=positive_int, default=32, help="prompts decoded together (default: %(default)s)")
    add("--max_new_tokens", type=non_negative_int, default=0,
        help="budget of a Kotlin prediction; 0: the data set's chunk length (default: %(default)s)")
    add("--precision", choices=("auto", "bf16", "fp16", "float32"), default="auto",
        help="of both models; auto: bf16 where the hardware has it, else fp16 on a GPU, float32 on a CPU (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("results"), help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="of the sample and the resamples (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(benchmark, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
