"""Whole files as sequences: every token is a label once, and the end of text is one where a file ends, or
where a middle does."""
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.encoded_examples import EncodedExamples
from pipeline.data.large_values import LARGE_VALUE, has_large_value
from pipeline.fim.fim_examples import Infilled, Infilling, check_unused, infill
from pipeline.fim.spans import Span
from pipeline.model.tokenizers import encode_prompts
from pipeline.retrieval.snippet_examples import PieceQueries

OVERLAP_TOKENS = 64  # of a sequence, repeated from the one before it: context without labels
FILES_PER_BATCH = 64  # tokenized together
STREAM = 29  # keeps the draw of a large file's sequences apart from other random numbers of the same seed


@dataclass
class FileBound:
    """How much one file may give: as many sequences as have --max_file_tokens, drawn with the seed."""
    tokens: int = 0  # 0: all
    seed: int = 0
    files: int = 0  # that gave less than they hold, and how many sequences were left out
    left_out: int = 0

    def chosen(self, number: int, sequences: list[Any], sequence_tokens: int) -> list[Any]:
        """Return those of the `sequences` of the text `number` that are learned, in their order."""
        most = max(1, self.tokens // sequence_tokens) if self.tokens else len(sequences)
        if len(sequences) <= most:
            return sequences
        self.files, self.left_out = self.files + 1, self.left_out + len(sequences) - most
        draw = np.random.default_rng([self.seed, STREAM, number])
        return [sequences[i] for i in np.sort(draw.permutation(len(sequences))[:most])]


UNBOUNDED = FileBound()


def sequence_places(count: int, sequence_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, first label, end) of the sequences of a file of `count` tokens, each at most
    `sequence_tokens` long.

    Every token but the file's first, which nothing predicts, is at or behind the first label of just one.
    """
    overlap = min(OVERLAP_TOKENS, sequence_tokens // 2)
    begin, label, end = 0, 1, min(count, sequence_tokens)
    while label < count:
        yield begin, label, end
        begin, label, end = end - overlap, end, min(count, end - overlap + sequence_tokens)


def encode_texts(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Return the (tokens,) int32 ids of whole files, each with the end-of-text token behind it."""
    return [np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encode_prompts(tokenizer,
                                                                                               texts)]


def text_of(tokenizer: Any, ids: np.ndarray) -> str:
    """Return the text of a file's tokens as it stands there, without special tokens."""
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def sequences_of(tokenizer: Any, texts: Iterable[str], number: int, sequence_tokens: int,
                 infilling: Infilling | None = None,
                 paths: Iterable[str | None] = itertools.repeat(None),
                 queries: PieceQueries | None = None, bound: FileBound = UNBOUNDED) -> EncodedExamples:
    """Return the first `number` (0: all) sequences of the texts, in their order; `paths` tell the languages.
    `queries` takes those that are to begin with pieces of other files; `bound`: how much each text gives.

    Sequences that hold a very large value are left out.  Of the others, `infilling` turns its share into
    prefix, suffix and middle; what it leaves out of one, at most a few tokens of the suffix's end (in SPM the
    context before it too), is no label anywhere.  Only as many texts are tokenized as it takes.
    """
    rows: list[np.ndarray] = []
    labels: list[int] = []  # where the labels of each row begin
    kinds: list[str] = []  # of each row's middle
    for row, label, middle in _sequences(tokenizer, texts, paths, sequence_tokens, infilling, queries, bound):
        rows.append(row)
        labels.append(label)
        kinds.append(middle.kind if middle else "")
        if len(rows) == number:
            break
    if infilling:
        infilling.kinds = Counter(filter(None, kinds))
    return EncodedExamples.of_rows(rows, labels, infilling.format.markers() if infilling else frozenset())


def middles_of(tokenizer: Any, texts: Iterable[str], number: int, sequence_tokens: int, infilling: Infilling,
               paths: Iterable[str | None] = itertools.repeat(None)) -> EncodedExamples:
    """Return the first `number` (0: all) sequences of the texts that have a middle, written with one; what
    stands before the middle is no label."""
    always = dataclasses.replace(infilling, rate=1.0)
    rows: list[np.ndarray] = []
    labels: list[int] = []
    for row, _, middle in _sequences(tokenizer, texts, paths, sequence_tokens, always):
        if middle:
            rows.append(row)
            labels.append(middle.middle)
        if number and len(rows) == number:
            break
    return EncodedExamples.of_rows(rows, labels, infilling.format.markers())


def _sequences(tokenizer: Any, texts: Iterable[str], paths: Iterable[str | None], sequence_tokens: int,
               infilling: Infilling | None, queries: PieceQueries | None = None,
               bound: FileBound = UNBOUNDED) -> Iterator[tuple[np.ndarray, int, Infilled | None]]:
    """Yield each sequence's ids, where its labels begin, and its middle where it was given one."""
    number, place = 0, -1  # of the sequence, from 1, and of its text, from 0
    for batch in _batches(zip(texts, paths, strict=False)):  # without paths, they go on for ever
        encoded = encode_texts(tokenizer, [text for text, _ in batch])
        for (text, path), ids in zip(batch, encoded, strict=True):
            place += 1
            suspect = has_large_value(text)
            file = _File(tokenizer, infilling, text, path, ids) if infilling else None
            places = bound.chosen(place, list(sequence_places(len(ids), sequence_tokens)), sequence_tokens)
            for begin, label, end in places:
                if suspect and LARGE_VALUE.search(text_of(tokenizer, ids[begin:end])):
                    continue
                number += 1
                if queries:
                    queries.take(number - 1, place, ids, begin, label)
                middle = file and file.with_middle(number, begin, label, end, sequence_tokens)
                if middle:
                    yield np.array(middle.ids, dtype=np.int32), middle.first_label, middle
                else:
                    yield ids[begin:end], label - begin, None


class _File:
    """A file whose sequences are given middles."""

    def __init__(self, tokenizer: Any, infilling: Infilling, text: str, path: str | None, ids: np.ndarray):
        check_unused(ids, infilling.format)
        self.tokenizer, self.infilling = tokenizer, infilling
        self.text, self.path, self.ids = text, path, ids
        self.place = 0  # of the last piece in the text
        self.units: list[Span] | None = None
        self.parsed = False

    def with_middle(self, number: int, begin: int, label: int, end: int, most_tokens: int) -> Infilled | None:
        """Return the sequence `number` of the run, ids[begin:end], with a middle; None where it stays as it
        is: by its draw, or because it has none."""
        generator = self.infilling.generator(number)
        if generator.random() >= self.infilling.rate:
            return None
        piece = text_of(self.tokenizer, self.ids[begin:end])
        # where a character is cut in two, the piece stands nowhere
        place = self.text.find(piece, self.place)
        if not piece or place < 0:
            return None
        if not self.parsed:  # for the first that needs it
            self.units, self.parsed = self.infilling.units(self.text, self.path), True
        self.place = place
        units = self.units and [(first - place, last - place) for first, last in self.units]
        kept = len(text_of(self.tokenizer, self.ids[begin:label])) if begin else 0
        return infill(self.tokenizer, self.infilling, piece, kept, end == len(self.ids), most_tokens,
                      generator, units)


def _batches(files: Iterable[tuple[str, str | None]]) -> Iterator[list[tuple[str, str | None]]]:
    files = iter(files)
    while batch := list(itertools.islice(files, FILES_PER_BATCH)):
        yield batch


def random_order(files: Any, seed: int) -> np.ndarray:
    """Return the numbers of a split's files in an order drawn with the seed."""
    return np.random.default_rng(seed).permutation(len(files))


def files_in_random_order(files: Any, seed: int, column: str = "text") -> Iterator[Any]:
    """Yield the texts of a split, or another column (None where there is none), in an order drawn with the
    seed; memory: one batch of them."""
    order = random_order(files, seed)
    for begin in range(0, len(order), FILES_PER_BATCH):
        rows = order[begin:begin + FILES_PER_BATCH]
        yield from files.select(rows)[column] if column in files.column_names else [None] * len(rows)
