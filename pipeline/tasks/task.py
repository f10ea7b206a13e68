"""A benchmark set: what is asked, and what counts as the answer."""
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.model.tokenizers import encode_prompts
from pipeline.prompts.contexts import FileTexts, contexts_of
from pipeline.prompts.repository_form import SourcePiece

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


