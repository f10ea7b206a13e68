"""A benchmark set: what is asked, and what counts as the answer."""
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.contexts import FileTexts, contexts_of, find_cuts
from pipeline.datasets import draw, load_examples, load_files
from pipeline.errors import PipelineError
from pipeline.hub import find_manifest
from pipeline.repository_prompts import SourcePiece
from pipeline.tokenizers import encode_prompts

DEFAULT_CHUNK_TOKENS = 100
SUFFIX_KEPT = 1024  # tokens of the text behind a completion
CHARACTERS_KEPT = 40  # of a file, for each token of context: more than any language has


def text_lines(text: str) -> list[str]:
    """Return the lines of a text; str.splitlines would also cut at a form feed or U+2028, which may stand in
    a string."""
    return re.split(r"\r\n?|\n", text)


@dataclass
class Example:
    """One thing to predict."""
    id: str
    prompt: str
    reference: str  # normalized, as it is scored
    first_line: str  # the first line of the reference, normalized
    group: int  # examples of one group (one source file) are resampled together
    completion: str = ""  # the reference as it would stand behind the prompt
    # whether something ends behind the reference: its file, or the method; None: nobody knows
    ends: bool | None = True
    before: str = ""  # what stands before it, for a prompt of `Task.context_tokens`
    chunk: str = ""  # the pair's own prompt, where `prompt` is a longer one
    after: str | None = None  # what stands behind the completion in its file
    # where pieces of a repository stand before it: all that were found, the best first
    pieces: list[SourcePiece] = field(default_factory=list)
    path: str | None = None  # of its file
    repository: str = ""
    best: str = ""  # the best piece and what follows it in its file
    in_pieces: bool = False  # whether the answer stands in a piece that is shown
    place: tuple[int, int] | None = None  # its file, by the line of the raw file, and the cursor in it
    head: str = ""  # what follows a context in the prompt, whatever its length
    documented: bool = False  # of a method: whether it has documentation


class StopRule(Protocol):
    """Finds the end of a text that is given piece by piece."""
    LAST: str  # the character that any end stands behind

    def feed(self, piece: str) -> int | None:
        """Take the next piece; return where in the whole text the end is, or None while it goes on."""


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
    # of the file before the cut, in each model's own tokens; 0: the examples' prompts
    context_tokens: int = 0
    lines: Callable[[str], Iterable[str]] = text_lines  # of a text that is not yet normalized
    # what models are asked with, by their tokenizers (`prompts_of`)
    asked: list[tuple[Any, list[str]]] = field(default_factory=list)
    # makes the token ids of prompts with a tokenizer, where more stands in them than `prompts_of` says
    encode: Callable[[Any, list[str]], list[list[int]]] | None = None
    suffix_tokens: int = 0  # of the text behind the completion
    stops: frozenset[int] = frozenset()  # tokens that end a prediction beside the end of text
    # puts what else stands there before the token ids of the texts that `prompts_of` gives
    put_before: Callable[[Any, list[list[int]]], list[list[int]]] | None = None
    # by name: examples, by their places, that are also scored by themselves
    parts: dict[str, list[int]] = field(default_factory=dict)
    repository_tokens: int = 0  # of pieces of the repository before the context
    twin: str = ""  # the set with the same examples without these pieces
    # makes what finds the same end as `end_of_prediction` in a text that it is given piece by piece
    stop_rule: Callable[[], StopRule] | None = None
    texts: FileTexts | None = None  # of the files that the examples are from
    file_name: str = ""  # of its predictions; that of its language where it is empty
    language: str = ""  # of a data set of ours, as it is shown; the set of Python methods has none
    methods: bool = False  # whether what is asked for are bodies of methods of that data set


def first_line(text: str, normalize: Callable[[str], str],
               lines: Callable[[str], Iterable[str]] = text_lines) -> str:
    """Return the first of a completion's `lines` that holds anything, normalized."""
    return next((line for line in map(normalize, lines(text)) if line), "")


def fold_white_space(text: str) -> str:
    """Return the text with every run of white space as one space, and none at the ends."""
    return " ".join(text.split())


def chunk_tokens(dataset: str) -> int:
    """Return the length of a data set's chunks by its manifest, or the default of stage 2, saying so."""
    length = (find_manifest(dataset, "dataset") or {}).get("arguments", {}).get("chunk_tokens")
    if isinstance(length, int) and length > 0:
        return length
    print(f"note: --dataset {dataset}: no manifest gives the length of its chunks; the budget is "
          f"{DEFAULT_CHUNK_TOKENS} new tokens (--max_new_tokens sets another)", file=sys.stderr)
    return DEFAULT_CHUNK_TOKENS


def prompts_of(task: Task, tokenizer: Any) -> list[str]:
    """Return what a model with this tokenizer is asked with: `context_tokens` are counted in its own
    tokens."""
    if not task.context_tokens:
        # with pieces before it, what is shown as the prompt is more than the chunk
        return [example.chunk if task.repository_tokens else example.prompt for example in task.examples]
    if not any(known is tokenizer for known, _ in task.asked):  # some seconds of search for 500 examples
        befores = [example.before for example in task.examples]
        contexts = contexts_of(tokenizer, befores, task.context_tokens)
        task.asked.append((tokenizer, [context + example.head for context, example
                                       in zip(contexts, task.examples, strict=True)]))
    return next(prompts for known, prompts in task.asked if known is tokenizer)


def prompt_ids(task: Task, tokenizer: Any) -> list[list[int]]:
    """Return the token ids of what a model with this tokenizer is asked with; at least one, because a model
    has to go on from something."""
    texts = prompts_of(task, tokenizer)
    ids = task.encode(tokenizer, texts) if task.encode else encode_prompts(tokenizer, texts)
    if task.put_before:
        ids = task.put_before(tokenizer, ids)
    return [prompt or [tokenizer.eos_token_id] for prompt in ids]


def show_prompts(task: Task, tokenizer: Any) -> None:
    """Set the prompts that are shown: those of the model with this tokenizer."""
    for example, text in zip(task.examples, prompts_of(task, tokenizer), strict=True):
        example.prompt = text


def kotlin_task(dataset: str, sample: int, seed: int, max_new_tokens: int, context_tokens: int = 0,
                tokenizer: Any = None, verify: bool = True) -> Task | None:
    """Return the task of the data set's test split; `max_new_tokens` 0: the length of its chunks.

    `context_tokens` 0: the prompt is the pair's chunk, else so many tokens of the file before the cut, in
    whole lines; `tokenizer` counts those that are shown.  None, with a note, where the data set has no files
    for that.  `verify`: the data set, against its manifest.
    """
    data = load_examples(dataset, ("test",), verify)["test"]
    if not len(data):
        raise PipelineError(f"--dataset {dataset}: its test split is empty; "
                            "run preprocess_data.py on more files")
    chosen = draw(len(data), sample, seed)
    rows = data.select(chosen)[:]
    files = load_files(dataset, ("test",))
    texts = files and FileTexts(files["test"])
    cuts = find_cuts(rows, texts)
    if context_tokens and None in cuts:
        print(f"note: --dataset {dataset}: holds no whole files; asked behind one chunk alone, not behind "
              f"{context_tokens} tokens", file=sys.stderr)
        return None
    groups = rows.get("source_line", chosen)
    examples = [Example(str(number), prompt, fold_white_space(completion),
                        first_line(completion, fold_white_space), int(group), completion,
                        ends=cut and cut.ends_file, chunk=prompt, place=cut and (int(group), len(cut.before)),
                        after=cut and cut.after[:CHARACTERS_KEPT * SUFFIX_KEPT],
                        before=cut.before[-CHARACTERS_KEPT * context_tokens:] if context_tokens else "")
                for number, prompt, completion, group, cut
                in zip(chosen, rows["prompt"], rows["completion"], groups, cuts, strict=True)]
    digest = hashlib.sha256()  # of the split itself: the same in a folder and on the hub
    for batch in data.select_columns(["prompt", "completion"]).iter(1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    language = texts.language() if texts else "Kotlin"
    name, prompt = language, "one chunk"
    if context_tokens:
        name, prompt = f"{name}, {context_tokens} tokens of context", f"{context_tokens} tokens of the file"
    task = Task(name, examples, max_new_tokens or chunk_tokens(dataset), fold_white_space, None,
                {"data_hash": digest.hexdigest(), "prompt": prompt, "stop": "end of text"},
                Path(dataset).name if Path(dataset).is_dir() else dataset, context_tokens, texts=texts,
                language=language)
    if context_tokens:
        befores = json.dumps([example.before for example in examples])
        task.settings["context_hash"] = hashlib.sha256(befores.encode()).hexdigest()
        show_prompts(task, tokenizer)
    return task
