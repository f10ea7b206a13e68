"""Whether the file up to the cursor still parses behind a prediction.

A file that ends in the middle of something never parses as a whole.  What tells a mistake from an end is
where the parser meets it: an LR parser reads on as long as some program begins with what it has read (the
viable-prefix property, Aho, Lam, Sethi and Ullman, 4.7), so an error that it meets only at the end of the
text is none.  Tree-sitter says what it meets in its log.  Behind an error it no longer says all: of a file
that has one before the cursor nothing is known.
"""
import re
from typing import Any

import tree_sitter

from pipeline.data.syntax import find_grammar, language_of, with_line_end
from pipeline.methods.block_end import BlockEnd
from pipeline.prompts.contexts import FileTexts
from pipeline.tasks.task import Task

LITERALS = ("kotlin", "java")  # the languages whose open strings and comments `BlockEnd` knows
_LAST_WORD = re.compile(r"[\w$]+\Z")
_VERSION = re.compile(r"process version:(\d+)")
_NO_CODE = re.compile(rb"(?:[\s;]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_PLACE = re.compile(r"row:(\d+), col:(\d+)")


class ErrorLog:
    """Takes the parser's log of a text: where the tokens begin that it could not go on with, but for the end
    of the text."""

    def __init__(self, source: bytes):
        self.source = source
        self.errors: list[int] = []  # bytes
        self.version, self.at = "", (0, 0)
        self.stuck: list[int] = []  # where each version of the parse cannot go on
        self.skipped: dict[str, int] = {}  # by version: where it took code for the end of a line

    def __call__(self, kind: Any, message: str) -> None:
        """Take one message."""
        if message.startswith("process version"):
            self.version = _VERSION.match(message)[1]
            self.at = tuple(map(int, _PLACE.search(message).groups()))
        elif message.startswith("detect_error"):
            self.stuck.append(self.skipped.pop(self.version, self._token_behind(self.at)))
        elif message.startswith("lexed_lookahead sym:_semi"):
            # Kotlin's grammar in version 1.1.0: an end of line that nothing ends takes all that follows
            begin = self._token_behind(self.at)
            end = self._offset(self.at) + int(message.rsplit(":", 1)[1])
            if not _NO_CODE.fullmatch(self.source[begin:end]):
                self.skipped[self.version] = begin
        elif message.startswith("resume") and self.stuck:  # no version of the parse goes on
            if max(self.stuck) < len(self.source):
                self.errors.append(max(self.stuck))
            self.stuck = []

    def _offset(self, place: tuple[int, int]) -> int:
        """Return a place, row and column in bytes, as one number of bytes."""
        start = 0
        for _ in range(place[0]):
            start = self.source.index(b"\n", start) + 1
        return start + place[1]

    def _token_behind(self, place: tuple[int, int]) -> int:
        """Return where the token behind a place begins; the end of the text where none follows."""
        start = self._offset(place)
        while self.source[start:start + 1].isspace():
            start += 1
        return start


def point_of(source: bytes) -> tuple[int, int]:
    """Return row and column of the end of a text."""
    return source.count(b"\n"), len(source) - source.rfind(b"\n") - 1


class PrefixParser:
    """Parses files up to a cursor, and what is written behind it."""

    def __init__(self, extension: str):
        self.grammar = find_grammar(extension)

    def begin(self, before: str) -> "ParsedPrefix | None":
        """Return the parse of a file up to the cursor; None where there is no grammar, or where it would take
        too much."""
        tree = self.grammar and self.grammar.parse(before.encode())
        return tree and ParsedPrefix(self.grammar.language, before, tree)


class ParsedPrefix:
    """A file up to the cursor, parsed."""

    def __init__(self, language: tree_sitter.Language, before: str, tree: tree_sitter.Tree):
        self.language, self.before, self.tree = language, before, tree
        self.source = before.encode()
        self.literals = BlockEnd(braces=1 << 60)  # a file closes no block
        self.literals.feed(before)

    def still_parses(self, prediction: str, ended: bool) -> bool | None:
        """Return whether no error is met in a prediction behind the cursor; None where one is met before
        it.

        One that has not `ended` by itself may stop within a word, which is left out; what is open at its end,
        a string or a comment, is closed.  Time: what the parser takes for the prediction and for what it
        changes in the tree.
        """
        text = prediction if ended else _LAST_WORD.sub("", prediction)
        literals = self.literals.copy()
        literals.feed(text)
        text += literals.closing(text)
        source, begin = with_line_end(self.source + text.encode()), len(self.source)
        parsed, tree = with_line_end(self.source), self.tree.copy()
        tree.edit(begin, len(parsed), len(source), point_of(self.source), point_of(parsed), point_of(source))
        log = ErrorLog(source)
        tree_sitter.Parser(self.language, logger=log).parse(source, tree)
        if not log.errors:
            return True
        # in the prediction, or in a word that stands on both sides of the cursor
        first = log.errors[0]
        return False if first >= begin or re.fullmatch(rb"[\w$]+", source[first:begin + 1]) else None


def parses(task: Task, predictions: list[list[str]], ended: list[list[bool]]) -> list[list[bool | None]]:
    """Return for each list of predictions whether the file up to the cursor still parses behind each; None
    where nothing is known of the file, or no grammar is there for it."""
    found: list[list[bool | None]] = [[] for _ in predictions]
    parsers: dict[str, PrefixParser] = {}
    for i in range(len(task.examples)):
        before, extension = text_before(task, i)
        parsed = None
        if before is not None and language_of(extension) in LITERALS:
            parser = parsers.setdefault(extension, PrefixParser(extension))
            parsed = parser.begin(before)
        for results, texts, ends in zip(found, predictions, ended, strict=True):
            results.append(parsed and parsed.still_parses(texts[i], ends[i]))
    return found


def text_before(task: Task, number: int) -> tuple[str | None, str]:
    """Return the file up to the cursor of an example, or None where nobody knows it, and its extension."""
    texts: FileTexts | None = task.source.texts
    cursor = task.examples[number].cursor
    if texts is None or cursor is None:
        return None, ""
    line, cut = cursor
    return texts.text(line)[:cut], texts.extension(line)
