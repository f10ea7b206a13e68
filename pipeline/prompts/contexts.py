"""Contexts: the text of a file before a cut, at most so many tokens of it.

An editor prompts with the open file, not with one chunk of it.  A pair of the data set names its file
(`source_line`) and where its prompt begins in it (`start`); the file's text lies beside the pairs (`files/`).
"""
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.data.syntax import extension_of, label_of
from pipeline.model.tokenizers import encode_plain

CHARACTERS_PER_TOKEN = 4  # of source code, about: where the search for the beginning of a context starts


@dataclass
class Cut:
    """A pair of the data set in its file."""
    before: str  # the file up to where the completion begins
    ends_file: bool  # whether the completion is the last of the file
    after: str = ""  # the file from where the completion ends


class FileTexts:
    """The texts of one split's files, found by the line of the raw file that they came from.

    Memory: 8 bytes and a dictionary entry per file; texts stay on the disk.
    """

    def __init__(self, files: Any):
        self.files = files
        self.rows = {line: row for row, line in enumerate(files["source_line"][:])}

    def text(self, source_line: int) -> str | None:
        """Return the text of the file that a line of the raw file became, or None if it is missing."""
        row = self.rows.get(source_line)
        return None if row is None else self.files[row]["text"]

    def extension(self, source_line: int) -> str:
        """Return the extension of the file that a line of the raw file was; Kotlin's if it is unknown."""
        named = "path" in self.files.column_names
        return extension_of(self.files[self.rows[source_line]]["path"] if named else None)

    def language(self) -> str:
        """Return the language of most files, as people write it; Kotlin if it is unknown."""
        paths = self.files["path"][:] if "path" in self.files.column_names else []
        [(extension, _)] = Counter(map(extension_of, paths or [None])).most_common(1)
        return label_of(extension)

    def cut(self, source_line: int, start: int, prompt: str, completion: str) -> Cut | None:
        """Return the pair's cut, or None if the file is missing or does not hold the pair."""
        text, end = self.text(source_line), start + len(prompt) + len(completion)
        if text is None or text[start:end] != prompt + completion:
            return None
        return Cut(text[:start + len(prompt)], end == len(text), text[end:])


def each_cut(pairs: dict[str, list], files: FileTexts | None) -> Iterator[Cut | None]:
    """Yield the cut of each pair, given as columns; None for all without `files` or the columns that name
    them."""
    if files is None or not {"source_line", "start"} <= set(pairs):
        yield from [None] * len(pairs["prompt"])
        return
    columns = (pairs[name] for name in ("source_line", "start", "prompt", "completion"))
    yield from (files.cut(*row) for row in zip(*columns, strict=True))


def find_cuts(pairs: dict[str, list], files: FileTexts | None) -> list[Cut | None]:
    """Return `each_cut` at once, for pairs that are not too many: each holds its file up to the cut."""
    return list(each_cut(pairs, files))


def last_lines(text: str, tokens: int, count: Callable[[str], int]) -> str:
    """Return the end of `text` that `count` finds to have at most `tokens` tokens: as many whole lines as
    fit.

    If not even the last line fits, the end of that line.  All of the text if that fits.  Time: some counts of
    a text of about that length, however long the text is.
    """
    length = CHARACTERS_PER_TOKEN * tokens
    while length < len(text) and count(text[-length:]) <= tokens:
        length *= 2
    tail = text[-length:]
    if count(tail) <= tokens:
        return tail
    begins = [place + 1 for place, character in enumerate(tail[:-1]) if character == "\n"]
    place = _first_that_fits(begins, lambda begin: count(tail[begin:]) <= tokens)
    if place is not None:
        return tail[place:]
    # within the last line: a line end and the indentation after it may be one token, and fit where the
    # indentation alone does not
    last_line = range(begins[-1] if begins else 0, len(tail) + 1)
    return tail[_first_that_fits(last_line, lambda begin: count(tail[begin:]) <= tokens):]


def _first_that_fits(places: Any, fits: Callable[[int], bool]) -> int | None:
    """Return the first of the ascending `places` that fits, by bisection: all after it fit too."""
    low, high = 0, len(places)
    while low < high:
        middle = (low + high) // 2
        if fits(places[middle]):
            high = middle
        else:
            low = middle + 1
    return places[low] if low < len(places) else None


def first_lines(tokenizer: Any, texts: Iterable[str], tokens: int) -> list[str]:
    """Return the first whole lines of each text that have at most `tokens` tokens of the tokenizer, or the
    beginning of the first line if that does not fit."""
    def shortened(text: str) -> str:
        [ids] = encode_plain(tokenizer, [text])
        if len(ids) <= tokens:
            return text
        kept = tokenizer.decode(ids[:tokens], skip_special_tokens=False).rstrip("\ufffd")
        # what a tokenizer takes away at a text's beginning would shift the end: it is found in the text
        length = len(kept) + max(0, text.find(kept[:40]))
        end = text.rfind("\n", 0, length)
        return text[:end + 1] if end >= 0 else text[:length]

    return [shortened(text) for text in texts]


def contexts_of(tokenizer: Any, befores: Iterable[str], tokens: int) -> list[str]:
    """Return the last whole lines of each text that have at most `tokens` tokens of the tokenizer."""
    def count(text: str) -> int:
        return len(encode_plain(tokenizer, [text])[0])

    return [last_lines(before, tokens, count) for before in befores]
