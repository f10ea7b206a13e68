"""Token ids and their places in the text, as fast as the tokenizer gives them."""
import json
from typing import Any

import numpy as np


def byte_lengths(tokenizer: Any) -> np.ndarray | None:
    """Return the length in bytes of each token of a byte-level tokenizer, by its id; None for other kinds.

    With them, offsets are a cumulated sum; the library makes two Python integers a token of them, and is
    slower for it.
    """
    spec = json.loads(tokenizer.to_str())
    steps = spec["pre_tokenizer"] or {}
    byte_level = [s for s in (steps, *steps.get("pretokenizers", ())) if s.get("type") == "ByteLevel"]
    prefixed = any(s["add_prefix_space"] for s in byte_level)
    if spec["normalizer"] or spec["model"]["type"] != "BPE" or not byte_level or prefixed:
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, number in vocabulary.items():
        lengths[number] = len(token)  # the alphabet of a byte-level tokenizer has one character a byte
    for number, added in tokenizer.get_added_tokens_decoder().items():
        lengths[number] = len(added.content.encode())
    return lengths


def offsets_from_lengths(text: str, lengths: np.ndarray) -> np.ndarray | None:
    """Return the (tokens, 2) character offsets of tokens of `lengths` bytes; None if they are not `text`'s.

    As in the library, a token that ends within a character ends behind it, and the next one starts before it.
    """
    data = text.encode()
    ends = np.cumsum(lengths)
    if ends[-1] != len(data):
        return None
    starts = ends - lengths
    if len(data) == len(text):
        return np.stack([starts, ends], axis=1)
    # characters that begin at or before each byte
    begins = np.cumsum((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)
    return np.stack([begins[starts] - 1, begins[ends - 1]], axis=1)


def encode(tokenizer: Any, lengths: np.ndarray | None,
           texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each text its token ids and their (tokens, 2) character offsets.

    `lengths`: `byte_lengths` of the tokenizer.
    """
    encode_all = tokenizer.encode_batch if lengths is None else tokenizer.encode_batch_fast
    results = []
    for text, encoding in zip(texts, encode_all(texts, add_special_tokens=False), strict=True):
        ids = np.array(encoding.ids, dtype=np.int64)
        offsets = offsets_from_lengths(text, lengths[ids]) if lengths is not None and len(ids) else None
        if offsets is None:
            if lengths is not None:  # encode_batch_fast leaves the library's own offsets out
                encoding = tokenizer.encode(text, add_special_tokens=False)
            ids = np.array(encoding.ids, dtype=np.int64)
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        results.append((ids, offsets))
    return results
