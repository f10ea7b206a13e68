"""Cutting a file into chunks at good places, and into windows of a prompt and its completion."""
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.data.clean_file import CleanFile
from pipeline.data.large_values import LARGE_VALUE
from pipeline.preparation.cleaning import is_trivial

# The last share of a chunk, in which the kind of place decides where it ends: a line has about 10 tokens.
NEAR_END = 0.2


# The ranks of places to cut, the best last.  0: none, for a character would be split.
WITHIN_WORD, OTHER_PUNCTUATION, WHITE_SPACE, STATEMENT, LINE = 1, 2, 3, 4, 5
# By a character's code; 128: any other character.  `$` and `_` are parts of names, and no punctuation.
_AFTER_CHARACTER, _BEFORE_CHARACTER = np.ones(129, dtype=np.uint8), np.ones(129, dtype=np.uint8)
_AFTER_CHARACTER[[ord(c) for c in "!\"#%&'(*+-./:<=>?@[\\]^`|~"]] = OTHER_PUNCTUATION
_AFTER_CHARACTER[[ord(c) for c in "};{,)"]] = STATEMENT
_BEFORE_CHARACTER[[ord(c) for c in " \t\f\v\r"]] = WHITE_SPACE
_AFTER_CHARACTER[ord("\n")] = _BEFORE_CHARACTER[ord("\n")] = LINE


def find_cuts(text: str, offsets: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Return where `text` may be cut, given the (tokens, 2) character offsets of its tokens.

    The (n + 1,) character offsets of the boundaries of tokens (before the first, ..., behind the last), and
    for each its rank as one byte: LINE behind or before a line break; STATEMENT behind one of `} ; { , )`;
    WHITE_SPACE before that; OTHER_PUNCTUATION behind any other; WITHIN_WORD; 0 where a cut would split a
    character.  A cut before white space gives that to the completion, so that its first word is tokenized as
    it is in running text.
    """
    count = len(offsets)
    position = np.empty(count + 1, dtype=np.int64)
    position[0], position[-1] = 0, len(text)
    position[1:-1] = inner = offsets[:-1, 1]
    # A token that ends where the text ends or begins leaves an empty side: not a cut.
    possible = (inner <= offsets[1:, 0]) & (inner > 0) & (inner < len(text))
    codes = np.minimum(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), 128)
    before, after = codes[inner - 1], codes[np.minimum(inner, len(text) - 1)]
    # within a run of white space, only its line breaks count
    opens_space = _BEFORE_CHARACTER[before] < WHITE_SPACE
    ranks = np.full(count + 1, LINE, dtype=np.uint8)
    ranks[1:-1] = possible * np.maximum(_AFTER_CHARACTER[before],
                                        np.where(opens_space, _BEFORE_CHARACTER[after], WITHIN_WORD))
    return position, ranks.tobytes()


def last_best_place(ranks: bytes, low: int, high: int) -> int:
    """Return where a chunk from boundary `low` to `high` at most ends: the last best place near its end.

    Near is its last NEAR_END; without any place outside words there, its second half, then all of it.  `high`
    is passed only where one character has more tokens than fit.
    """
    for first in (high - max(1, int((high - low) * NEAR_END)), low + (high - low) // 2):
        for rank in (LINE, STATEMENT, WHITE_SPACE, OTHER_PUNCTUATION):
            if (place := ranks.rfind(rank, first + 1, high + 1)) >= 0:
                return place
    end = high
    while end > low and not ranks[end]:
        end -= 1
    return end if end > low else next(i for i in range(high + 1, len(ranks)) if ranks[i])


def cut_windows(ranks: bytes, chunk_tokens: int, stride_tokens: int) -> list[tuple[int, int, int]]:
    """Return the windows (start, cut, end), in boundaries of tokens.

    A prompt is [start, cut), its completion [cut, end).  `ranks` comes from `find_cuts`; no chunk has more
    than `chunk_tokens` tokens, but one of a single character that has.  Windows start every `stride_tokens`
    tokens, or at the best place before; with 0, each starts where the completion of the one before it began,
    so that every position behind the first chunk is in one completion.
    """
    count = len(ranks) - 1
    minimum = max(1, chunk_tokens // 10)  # a shorter completion than this teaches and measures nothing
    if count < 2 * minimum:
        return []

    def cut_after(start: int) -> int:
        # a short file is cut in the middle, so that it gives one example too
        if start == 0 and count <= chunk_tokens:
            return last_best_place(ranks, 0, count // 2)
        if start + chunk_tokens >= count:
            return count
        end = last_best_place(ranks, start, start + chunk_tokens)
        # two chunks of half the length, rather than a rest that no completion would hold
        if 0 < count - end < minimum:
            end = last_best_place(ranks, start, (start + count) // 2)
        return end

    windows: list[tuple[int, int, int]] = []
    start, end, multiple = 0, 0, 0
    while end < count:
        cut = cut_after(start)
        if count - cut < minimum:
            break
        end = cut_after(cut)
        windows.append((start, cut, end))
        if not stride_tokens:
            start = cut
            continue
        following = start
        while following <= start:
            multiple += stride_tokens
            if multiple > start:
                following = last_best_place(ranks, max(multiple - stride_tokens, start), min(multiple, count))
        start = following
    return windows


@dataclass(frozen=True)
class Choice:
    """Which windows of a file become examples of its split."""
    keep_large_values: bool
    keep_trivial: bool  # else those of the test split whose completion is trivial are left out
    seed: int = 0
    caps: dict[str, int] = field(default_factory=dict)  # of each split: as many of a file at most


def windows_of(file: CleanFile, split: str, choice: Choice) -> np.ndarray:
    """Return the windows of a file that become examples of a split.

    Left out are those that hold a very large value, in the test split those that measure nothing, and of what
    is left more than the split's cap, drawn with the seed.
    """
    windows = usual_windows(file, split, choice.keep_large_values, choice.keep_trivial)
    cap = choice.caps.get(split)
    if cap is None or len(windows) <= cap:
        return windows
    draw = np.random.default_rng([choice.seed, int.from_bytes(file.digest[:8])])
    return windows[np.sort(draw.permutation(len(windows))[:cap])]


def usual_windows(file: CleanFile, split: str, keep_large_values: bool, keep_trivial: bool) -> np.ndarray:
    """Return `windows_of` a file, however many there are."""
    windows = file.train_windows if split == "train" else file.eval_windows
    if not keep_large_values and file.has_large_value:
        windows = windows[[not LARGE_VALUE.search(file.text, start, end)
                           for start, end in windows[:, [0, 2]].tolist()]]
    if not keep_trivial and split == "test":
        windows = windows[[not is_trivial(file.text[cut:end]) for cut, end in windows[:, 1:3].tolist()]]
    return windows


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
