"""A benchmark set: its examples, how models are prompted with them, and what counts as an answer."""
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pipeline.prompts.contexts import FileTexts
from pipeline.prompts.prompter import NOWHERE, WHOLE_TEXT, Place, Prompter, PromptTokens

SUFFIX_KEPT = 1024  # tokens of the text after a completion


def text_lines(text: str) -> list[str]:
    """Return the lines of a text; str.splitlines would also cut at a form feed or U+2028, which may occur
    in a string."""
    return re.split(r"\r\n?|\n", text)


class Cursor(NamedTuple):
    """Where a completion begins."""
    file: int  # the line of the raw file that its file was
    offset: int  # characters of that file before it


@dataclass
class Example:
    """One completion to predict."""
    id: str
    prompt: str  # as reports show it: that of the base model
    reference: str  # normalized, as it is scored
    first_line: str  # the first line of the reference, normalized
    group: int  # examples of one group (one source file) are resampled together
    completion: str = ""  # the reference as it would follow the prompt
    # whether something ends after the reference: its file, or the method; None: unknown
    ends: bool | None = True
    place: Place = NOWHERE  # what prompts are composed from
    chunk: str = ""  # the pair's own prompt, where `prompt` is a longer one
    cursor: Cursor | None = None
    # with repository context: the best snippet and what follows it in its file, and whether the reference is
    # part of a snippet that is shown
    best_snippet: str = ""
    in_snippets: bool = False


class Block(Protocol):
    """Finds the end of a text that is given in parts."""
    LAST: str  # the last character of every end

    def feed(self, text: str) -> int | None:
        """Take the next part; return the offset of the end in the whole text, or None while it goes on."""


class StopRule(NamedTuple):
    """When a prediction has ended that no end token ended."""
    end: Callable[[str], int | None]  # the offset of the end in a text, or None
    block: Callable[[], Block] | None = None  # makes what finds the same end in a text given in parts


class DataSource(NamedTuple):
    """What a set's examples were drawn from."""
    dataset: str = ""  # hub name, or name of the file or folder
    language: str = ""  # of a data set of ours, as it is shown; the set of Python methods has none
    texts: FileTexts | None = None  # of the files that the examples are from


UNKNOWN = DataSource()


@dataclass
class Task:
    """One benchmark set: its examples and how predictions of it are made and normalized."""
    name: str
    examples: list[Example]
    max_new_tokens: int
    normalize: Callable[[str], str]
    stop: StopRule | None = None  # None: only an end token ends a prediction
    settings: dict[str, Any] = field(default_factory=dict)
    source: DataSource = UNKNOWN
    tokens: PromptTokens = WHOLE_TEXT  # of a prompt, in each model's own tokens
    lines: Callable[[str], Iterable[str]] = text_lines  # of a text that is not yet normalized
    # by name: examples, by their positions, that are also scored by themselves
    parts: dict[str, list[int]] = field(default_factory=dict)
    twin: str = ""  # the set with the same examples without repository context
    methods: bool = False  # whether the completions are bodies of methods of the data set

    def places(self) -> list[Place]:
        """Return the places of all examples."""
        return [example.place for example in self.examples]


def first_line(text: str, normalize: Callable[[str], str],
               lines: Callable[[str], Iterable[str]] = text_lines) -> str:
    """Return the first of a completion's `lines` that is not blank, normalized."""
    return next((line for line in map(normalize, lines(text)) if line), "")


def fold_white_space(text: str) -> str:
    """Return the text with every run of white space as one space, and none at the ends."""
    return " ".join(text.split())


def show_prompts(task: Task, tokenizer: Any) -> None:
    """Set the prompts that are shown to the contexts of a model with this tokenizer."""
    contexts = Prompter(tokenizer, PromptTokens(task.tokens.context)).contexts(task.places())
    for example, text in zip(task.examples, contexts, strict=True):
        example.prompt = text
