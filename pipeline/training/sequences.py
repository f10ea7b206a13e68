"""Whole files as sequences: every token is a label once, and the end of text is one where a file ends."""
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.large_values import LARGE_VALUE, has_large_value
from pipeline.tokenizers import encode_prompts
from pipeline.training.examples import EncodedExamples

OVERLAP_TOKENS = 64  # of a sequence, repeated from the one before it: context without labels
FILES_PER_BATCH = 64  # tokenized together


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


def sequences_of(tokenizer: Any, texts: Iterable[str], number: int, sequence_tokens: int) -> EncodedExamples:
    """Return the first `number` (0: all) sequences of the texts, in their order.

    Sequences that hold a very large value are left out.  Only as many texts are tokenized as it takes.
    """
    rows: list[np.ndarray] = []
    labels: list[int] = []  # where the labels of each row begin
    for batch in _batches(texts):
        for text, ids in zip(batch, encode_texts(tokenizer, batch), strict=True):
            suspect = has_large_value(text)
            for begin, label, end in sequence_places(len(ids), sequence_tokens):
                if suspect and LARGE_VALUE.search(text_of(tokenizer, ids[begin:end])):
                    continue
                rows.append(ids[begin:end])
                labels.append(label - begin)
        if number and len(rows) >= number:
            break
    number = number or len(rows)
    return EncodedExamples.of_rows(rows[:number], labels[:number])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == FILES_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def files_in_random_order(files: Any, seed: int) -> Iterator[str]:
    """Yield the texts of a split in an order drawn with the seed; memory: one batch of them."""
    order = np.random.default_rng(seed).permutation(len(files))
    for begin in range(0, len(order), FILES_PER_BATCH):
        yield from files.select(order[begin:begin + FILES_PER_BATCH])["text"]
