"""Stage 2 of 5: clean the source files and cut them into (prompt, completion) examples.

Reads   data/kotlin_code_raw.jsonl         {"file_text": str}
Writes  data/kotlin_prepared_dataset/      train, validation, test: {"prompt": str, "completion": str, "source_line": int},
                                           report.md and report.png, manifest.json

A file loses its copyright comment, is dropped where it is too short, generated, or a near-duplicate of another,
and is cut into chunks of at most --chunk_tokens tokens, each at the best place near its end.  An example is a prompt
of one chunk and, as its completion, the chunk that follows it; in train the window slides by --stride_tokens, in
validation and test by a whole chunk, so that each position is evaluated once.  Splits are made by file and by
cluster of near-duplicates, from a hash of the content and the seed: no file is on two sides, and adding a file
moves no other.

Memory: one batch of files for each process, and 1.2 kB for each file (its MinHash); nothing grows with the
number of examples.  Time: linear in the size of the input, divided by the number of cores.

Run:    python preprocess_data.py
Quick:  python preprocess_data.py --limit 200
"""
import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pipeline_io import (
    PipelineError,
    atomic_folder,
    check_hub_write,
    check_local_model,
    check_manifest,
    check_replaceable,
    combined_hash,
    duration,
    first_line,
    fraction,
    hash_files,
    hub_errors,
    load_tokenizer,
    non_negative_int,
    output_lock,
    parse_json_line,
    positive_int,
    push_folder,
    run_stage,
    sealed_manifest,
    sha256_file,
    write_json,
    write_manifest,
)

SPLITS = ("train", "validation", "test")
FILES_PER_TASK = 64  # files that one process works on at a time
ROWS_PER_WRITE = 2000  # examples that are written at a time
# Values that break tokenization and teach nothing: mission.md's "hundreds of characters".
MAX_DIGIT_RUN, MAX_UNBROKEN_RUN = 40, 200
LARGE_VALUE = re.compile(rf"\d{{{MAX_DIGIT_RUN}}}|\S{{{MAX_UNBROKEN_RUN}}}")
GENERATED_MARKER = re.compile(r"@generated\b|\bDO NOT (?:EDIT|MODIFY)\b", re.IGNORECASE)
GENERATED_HEAD_LINES = 30  # the marker counts near the top only: further down, the words may be about something else
# MinHash: 256 permutations of 32 bits; 51 bands of 5 rows find 99.99 % of the pairs with a similarity of 0.7.
PERMUTATIONS, BAND_ROWS, NEAR_DUPLICATE_JACCARD, NGRAM = 256, 5, 0.7, 5
NEAR_END = 0.2  # of a chunk, within which the kind of place decides where it ends: a line of code has about 10 tokens
LEAK_NGRAM = 13  # the run of tokens that counts as contamination, as in Brown et al. 2020
SHORT_NGRAM = 5  # by which completions that are shorter than that are looked for
MINHASH_SEED, MINHASH_BLOCK = 1, 512
LEAK_FILTER_BITS = 22  # of a hash, that are looked at before it is looked for: 4 MB


class CleanFile(NamedTuple):
    """One file after cleaning, ready to be written once its cluster and split are known."""
    source_line: int  # its line in the raw file, from 1
    reason: str | None  # why it is dropped; None: it is kept, and the fields below are set
    digest: bytes = b""  # SHA-256 of the cleaned text
    text: str = ""
    train_windows: np.ndarray | None = None  # (examples, 6): prompt start, cut, completion end; in characters, then in tokens
    eval_windows: np.ndarray | None = None
    token_ids: np.ndarray | None = None  # (tokens,) uint16 or uint32
    signature: np.ndarray | None = None  # (PERMUTATIONS,) uint32
    has_large_value: bool = False


# ---------------------------------------------------------------------------------------------------------------
# Cleaning
# ---------------------------------------------------------------------------------------------------------------

_BLOCK_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_LINE_COMMENTS = re.compile(r"//[^\n]*(?:\n[ \t]*//[^\n]*)*")
_HASH_COMMENTS = re.compile(r"#(?!!)[^\n]*(?:\n[ \t]*#[^\n]*)*")
_SHEBANG = re.compile(r"#![^\n]*\n")
_SPEAKS_OF_RIGHTS = re.compile(
    r"copyright|\(c\)\s*(?:19|20)\d\d|©|SPDX-|licen[sc]ed\s+(?:under|to)|all\s+rights\s+reserved|"
    r"(?:apache|mit|bsd|mozilla|eclipse|gnu)\b[^.\n]{0,40}licen[sc]es?\b|licen[sc]e\s+(?:file|agreement|terms|header)|"
    r"public\s+domain|permission\s+is\s+hereby\s+granted", re.IGNORECASE)


def strip_copyright(source: str) -> str:
    """Return `source` without the comments at its very top that speak of copyright or licence.

    They may follow a BOM, blank lines or a shebang line (which stays).  Block and doc comments, runs of `//` or
    `#` lines; several in a row, as long as each speaks of rights.  Any other first comment stays, and so does
    every later one.  The blank lines around what was removed go too.
    """
    text = source.removeprefix("\ufeff")
    shebang = _SHEBANG.match(text)
    head = shebang[0] if shebang else ""
    rest, removed = text[len(head):], False
    while True:
        body = rest.lstrip()
        comment = _BLOCK_COMMENT.match(body) or _LINE_COMMENTS.match(body) or _HASH_COMMENTS.match(body)
        # Code behind the comment on its last line means that the comment belongs to the code.
        alone = comment and body[comment.end():].split("\n", 1)[0].strip() == ""
        if not comment or not alone or not _SPEAKS_OF_RIGHTS.search(comment[0]):
            return head + body if removed else text
        rest, removed = body[comment.end():], True


def drop_reason(text: str, keep_generated: bool, keep_short: bool) -> str | None:
    """Return why a cleaned file cannot serve, or None."""
    if not text.strip():
        return "empty after cleaning"
    if not keep_short and len(list(itertools.islice(filter(str.strip, text.splitlines()), 2))) < 2:
        return "fewer than two lines"
    head = "\n".join(text.split("\n", GENERATED_HEAD_LINES)[:GENERATED_HEAD_LINES])
    if not keep_generated and GENERATED_MARKER.search(head):
        return "generated by a machine"
    return None


def has_large_value(text: str) -> bool:
    """Return whether LARGE_VALUE is found in the text; only words that are that long are searched, which is 40 times as fast."""
    return any(LARGE_VALUE.search(word) for word in text.split() if len(word) >= MAX_DIGIT_RUN)


# ---------------------------------------------------------------------------------------------------------------
# Cutting
# ---------------------------------------------------------------------------------------------------------------

# The ranks of places to cut, the best last.  0: none, for a character would be split.
WITHIN_WORD, OTHER_PUNCTUATION, WHITE_SPACE, STATEMENT, LINE = 1, 2, 3, 4, 5
_AFTER_CHARACTER, _BEFORE_CHARACTER = np.ones(129, dtype=np.uint8), np.ones(129, dtype=np.uint8)  # 128: any other character
_AFTER_CHARACTER[[ord(c) for c in "!\"#%&'(*+-./:<=>?@[\\]^`|~"]] = OTHER_PUNCTUATION  # `$` and `_` are parts of names
_AFTER_CHARACTER[[ord(c) for c in "};{,)"]] = STATEMENT
_BEFORE_CHARACTER[[ord(c) for c in " \t\f\v\r"]] = WHITE_SPACE
_AFTER_CHARACTER[ord("\n")] = _BEFORE_CHARACTER[ord("\n")] = LINE


def find_cuts(text: str, offsets: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Return where `text` may be cut, given the (tokens, 2) character offsets of its tokens.

    The (n + 1,) character offsets of the boundaries of tokens (before the first, ..., behind the last), and for each
    its rank as one byte: LINE behind or before a line break; STATEMENT behind one of `} ; { , )`; WHITE_SPACE before
    that; OTHER_PUNCTUATION behind any other; WITHIN_WORD; 0 where a cut would split a character.  A cut before white
    space gives that to the completion, so that its first word is tokenized as it is in running text.
    """
    count = len(offsets)
    position = np.empty(count + 1, dtype=np.int64)
    position[0], position[-1] = 0, len(text)
    position[1:-1] = inner = offsets[:-1, 1]
    # A token that ends where the text ends or begins leaves an empty side: not a cut.
    possible = (inner <= offsets[1:, 0]) & (inner > 0) & (inner < len(text))
    codes = np.minimum(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), 128)
    before, after = codes[inner - 1], codes[np.minimum(inner, len(text) - 1)]
    opens_space = _BEFORE_CHARACTER[before] < WHITE_SPACE  # within a run of white space, only its line breaks count
    ranks = np.full(count + 1, LINE, dtype=np.uint8)
    ranks[1:-1] = possible * np.maximum(_AFTER_CHARACTER[before], np.where(opens_space, _BEFORE_CHARACTER[after], WITHIN_WORD))
    return position, ranks.tobytes()


def last_best_place(ranks: bytes, low: int, high: int) -> int:
    """Return where a chunk that begins at boundary `low` and may reach to `high` ends: the last of the best places near its end.

    Near is its last NEAR_END; without any place outside words there, its second half, then all of it.  `high` is
    passed only where one character has more tokens than fit.
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
    """Return the windows (start, cut, end), as token boundaries: prompt = [start, cut), completion = [cut, end).

    `ranks` comes from `find_cuts`; no chunk has more than `chunk_tokens` tokens, but one of a single character that
    has.  Windows start every `stride_tokens` tokens, or at the best place before; with 0, each starts where the
    completion of the one before it began, so that every position behind the first chunk is in one completion.
    """
    count = len(ranks) - 1
    minimum = max(1, chunk_tokens // 10)  # a shorter completion than this teaches and measures nothing
    if count < 2 * minimum:
        return []

    def cut_after(start: int) -> int:
        if start == 0 and count <= chunk_tokens:  # a short file is cut in the middle, so that it gives one example too
            return last_best_place(ranks, 0, count // 2)
        if start + chunk_tokens >= count:
            return count
        end = last_best_place(ranks, start, start + chunk_tokens)
        if 0 < count - end < minimum:  # two chunks of half the length, rather than a rest that no completion would hold
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


# ---------------------------------------------------------------------------------------------------------------
# The work of one process
# ---------------------------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}  # what each process needs for every file: tokenizer, arguments, MinHash permutations


def start_worker(tokenizer_json: str, options: dict[str, Any]) -> None:
    """Set up this process; called once in each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too and ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    from datasketch import MinHash
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # source text that looks like a special token is only text
    _worker.update(options, tokenizer=tokenizer, byte_lengths=byte_lengths(tokenizer),
                   minhash=MinHash(PERMUTATIONS, seed=MINHASH_SEED, hashfunc=np.asarray))


def end_with(parent: Any) -> None:
    """End this process when `parent` does; a parent that was killed outright cannot end its children itself."""
    parent.join()
    os._exit(1)


def byte_lengths(tokenizer: Any) -> np.ndarray | None:
    """Return the length in bytes of each token of a byte-level tokenizer, indexed by its id; None for any other kind.

    With them, offsets are a cumulated sum; the library makes two Python integers a token of them, and is slower for it.
    """
    spec = json.loads(tokenizer.to_str())
    steps = spec["pre_tokenizer"] or {}
    byte_level = [s for s in (steps, *steps.get("pretokenizers", ())) if s.get("type") == "ByteLevel"]
    if spec["normalizer"] or spec["model"]["type"] != "BPE" or not byte_level or any(s["add_prefix_space"] for s in byte_level):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, number in vocabulary.items():
        lengths[number] = len(token)  # the alphabet of a byte-level tokenizer has one character a byte
    for number, added in tokenizer.get_added_tokens_decoder().items():
        lengths[number] = len(added.content.encode())
    return lengths


def offsets_from_lengths(text: str, lengths: np.ndarray) -> np.ndarray | None:
    """Return the (tokens, 2) character offsets of tokens of `lengths` bytes; None if they are not the tokens of `text`.

    A token that ends within a character ends behind it, and the next one starts before it, as the library has it.
    """
    data = text.encode()
    ends = np.cumsum(lengths)
    if ends[-1] != len(data):
        return None
    starts = ends - lengths
    if len(data) == len(text):
        return np.stack([starts, ends], axis=1)
    begins = np.cumsum((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80)  # characters that begin at or before each byte
    return np.stack([begins[starts] - 1, begins[ends - 1]], axis=1)


def encode(texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each text its token ids and their (tokens, 2) character offsets."""
    tokenizer, lengths = _worker["tokenizer"], _worker["byte_lengths"]
    results = []
    for text, encoding in zip(texts, (tokenizer.encode_batch if lengths is None else tokenizer.encode_batch_fast)(
            texts, add_special_tokens=False), strict=True):
        ids = np.array(encoding.ids, dtype=np.int64)
        offsets = offsets_from_lengths(text, lengths[ids]) if lengths is not None and len(ids) else None
        if offsets is None:
            if lengths is not None:  # encode_batch_fast leaves the library's own offsets out
                encoding = tokenizer.encode(text, add_special_tokens=False)
            ids, offsets = np.array(encoding.ids, dtype=np.int64), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        results.append((ids, offsets))
    return results


def ngram_hashes(token_ids: np.ndarray, width: int) -> np.ndarray:
    """Return the (tokens - width + 1,) 64-bit hashes of the runs of `width` tokens; one hash of all if there are fewer."""
    ids = token_ids.astype(np.uint64)
    width = min(width, len(ids))
    hashes = np.zeros(len(ids) - width + 1, dtype=np.uint64)
    for i in range(width):  # a polynomial in the ids, whose products wrap around
        hashes = (hashes + ids[i:len(ids) - width + 1 + i] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return hashes


def minhash_signature(token_ids: np.ndarray) -> np.ndarray:
    """Return the (PERMUTATIONS,) uint32 MinHash of a file's set of token 5-grams (Broder 1997)."""
    shingles = np.sort((ngram_hashes(token_ids, NGRAM) >> np.uint64(32)).astype(np.uint32))
    shingles = shingles[np.r_[True, shingles[1:] != shingles[:-1]]]  # np.unique hashes, and takes five times as long
    sketch = _worker["minhash"].copy()
    for start in range(0, len(shingles), MINHASH_BLOCK):  # in blocks that stay in the cache
        sketch.update_batch([shingles[start:start + MINHASH_BLOCK]])  # an array of hashes as one value: no Python integer for each
    return sketch.hashvalues


def clean_files(path: Path, first_line: int, lines: list[bytes]) -> list[CleanFile]:
    """Clean, tokenize, cut and hash the files on `lines` of the raw file, the first of which is `first_line`."""
    results: list[CleanFile] = []
    kept: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=first_line):
        source = parse_json_line(path, number, line, {"file_text": str})["file_text"]
        text = source if _worker["keep_copyright"] else strip_copyright(source)
        reason = drop_reason(text, _worker["keep_generated"], _worker["keep_short"])
        if reason:
            results.append(CleanFile(number, reason))
        else:
            kept.append((number, text))
    for (number, text), (ids, offsets) in zip(kept, encode([text for _, text in kept]), strict=True):
        results.append(cut_file(number, text, ids, offsets))
    return sorted(results, key=lambda file: file.source_line)


def packed_files(path: Path, first_line: int, lines: list[bytes]) -> list[tuple[str | None, bytes, np.ndarray | None, bytes]]:
    """Return `clean_files` as (reason, digest, signature, pickled file): the parent only copies the last to its spool."""
    return [(file.reason, file.digest, file.signature, b"" if file.reason else pickle.dumps(file._replace(signature=None), protocol=5))
            for file in clean_files(path, first_line, lines)]


def cut_file(number: int, text: str, ids: np.ndarray, offsets: np.ndarray) -> CleanFile:
    """Return the file's windows, digest and signature; `ids` are its tokens, `offsets` (tokens, 2) where they stand."""
    if not len(ids):
        return CleanFile(number, "too short for an example")
    position, ranks = find_cuts(text, offsets)

    def windows(stride: int) -> np.ndarray:
        found = np.array(cut_windows(ranks, _worker["chunk_tokens"], stride), dtype=np.int64).reshape(-1, 3)
        return np.concatenate([position[found], found], axis=1)

    eval_windows = windows(0)
    if not len(eval_windows):
        return CleanFile(number, "too short for an example")
    token_ids = ids.astype(np.uint16 if _worker["tokenizer"].get_vocab_size() <= 1 << 16 else np.uint32)
    return CleanFile(number, None, hashlib.sha256(text.encode()).digest(), text, windows(_worker["stride_tokens"]),
                     eval_windows, token_ids, minhash_signature(token_ids), has_large_value(text))


def map_in_order(pool: ProcessPoolExecutor, function: Callable, tasks: Iterable[tuple], window: int) -> Iterator[Any]:
    """Yield `function(*task)` in the order of the tasks, with at most `window` of them under way."""
    running: deque[Future] = deque()
    for task in tasks:
        running.append(pool.submit(function, *task))
        if len(running) >= window:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


# ---------------------------------------------------------------------------------------------------------------
# Near-duplicates and splits
# ---------------------------------------------------------------------------------------------------------------

def cluster_near_duplicates(signatures: np.ndarray) -> np.ndarray:
    """Return for each of the (files, PERMUTATIONS) MinHash signatures the index of its cluster's first file.

    Two files are linked where the share of equal values, which estimates the Jaccard similarity of their 5-grams,
    is at least NEAR_DUPLICATE_JACCARD; clusters are what links connect (union-find).  Only files that agree in
    one band of BAND_ROWS values are compared (locality-sensitive hashing, Leskovec, Rajaraman and Ullman, ch. 3).
    """
    parent = list(range(len(signatures)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for first in range(0, PERMUTATIONS - BAND_ROWS + 1, BAND_ROWS):
        band = np.ascontiguousarray(signatures[:, first:first + BAND_ROWS])
        keys = band.view([("", band.dtype)] * BAND_ROWS).ravel()
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1], True])
        for begin, end in itertools.pairwise(starts.tolist()):
            if end - begin > 1:
                _link_bucket(signatures, order[begin:end], parent, root)
    return np.array([root(i) for i in range(len(signatures))], dtype=np.int64)


def _link_bucket(signatures: np.ndarray, members: np.ndarray, parent: list[int], root: Callable[[int], int]) -> None:
    """Join those `members` of one bucket whose signatures are alike; pairs that are joined already are skipped."""
    for i, member in enumerate(members[:-1].tolist()):
        others = np.array([m for m in members[i + 1:].tolist() if root(m) != root(member)], dtype=np.int64)
        if len(others):
            similarity = (signatures[others] == signatures[member]).mean(axis=1)
            for other in others[similarity >= NEAR_DUPLICATE_JACCARD].tolist():
                a, b = sorted((root(member), root(other)))
                parent[b] = a


def choose_split(digest: bytes, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """Return the split of a file (or cluster) from its content's hash and the seed alone."""
    number = int.from_bytes(hashlib.sha256(b"%d:" % seed + digest).digest()[:8]) / 2**64
    if number < test_fraction:
        return "test"
    return "validation" if number < test_fraction + validation_fraction else "train"


def assign_splits(digests: list[bytes], signatures: np.ndarray, args: argparse.Namespace) -> tuple[list[str | None], Counter]:
    """Return each file's split, or None for a duplicate that is dropped, and the counts of what was dropped.

    A cluster is represented by its file with the smallest digest, whatever the order of the files: it is the one
    that is kept, and its digest decides the split of all.
    """
    clusters = cluster_near_duplicates(signatures)
    # the digests of exact duplicates are equal, so that they are in one cluster; the first of them represents it
    representative: dict[int, int] = {}
    for i, cluster in enumerate(clusters.tolist()):
        best = representative.setdefault(cluster, i)
        if digests[i] < digests[best]:
            representative[cluster] = i
    counts: Counter = Counter()
    splits: list[str | None] = []
    seen: set[bytes] = set()
    for i, cluster in enumerate(clusters.tolist()):
        best = representative[cluster]
        exact = digests[i] in seen
        seen.add(digests[i])
        if i != best and (exact or args.near_duplicates == "drop"):
            exact = exact or digests[i] == digests[best]
            counts["exact duplicate" if exact else "near-duplicate"] += 1
            splits.append(None)
        else:
            splits.append(choose_split(digests[best], args.seed, args.validation_fraction, args.test_fraction))
    return splits, counts


# ---------------------------------------------------------------------------------------------------------------
# What the user can look at
# ---------------------------------------------------------------------------------------------------------------

class Statistics:
    """Lengths of prompts and completions in tokens, and the kinds of places where examples were cut."""

    def __init__(self, chunk_tokens: int):
        self.longest = 2 * chunk_tokens
        self.lengths = {"prompt": np.zeros(self.longest + 1, dtype=np.int64), "completion": np.zeros(self.longest + 1, dtype=np.int64)}
        self.boundaries: Counter = Counter()

    def add(self, text: str, windows: np.ndarray) -> None:
        """Count the examples of one file."""
        for name, lengths in (("prompt", windows[:, 4] - windows[:, 3]), ("completion", windows[:, 5] - windows[:, 4])):
            self.lengths[name] += np.bincount(np.minimum(lengths, self.longest), minlength=self.longest + 1)
        self.boundaries.update(boundary_kind(text, cut) for cut in windows[:, 1].tolist())

    def quantiles(self, name: str) -> dict[str, int]:
        """Return minimum, quartiles and maximum of the lengths, in tokens."""
        cumulated = np.cumsum(self.lengths[name])
        return {label: int(np.searchsorted(cumulated, max(1, share * cumulated[-1])))
                for label, share in (("min", 0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("max", 1))}


def boundary_kind(text: str, cut: int) -> str:
    """Return what kind of place a cut is."""
    before, after = text[cut - 1], text[cut:cut + 1]
    if before == "\n":
        return "at the start of a line"
    if after == "\n":
        return "at the end of a line"
    if after.isspace() and before not in "};{,)":  # in the order of the ranks
        return "before white space within a line"
    return "within a word" if before.isalnum() or before in "_$" else f"behind {before}"


@dataclass
class LeakSide:
    """The test completions of one way to split, and what of them was found in its train split."""
    name: str
    splits: list[str | None]
    completions: list[str] = field(default_factory=list)
    grams: list[np.ndarray] = field(default_factory=list)  # hashes of the runs of LEAK_NGRAM tokens in each completion
    short_grams: list[np.ndarray] = field(default_factory=list)  # of SHORT_NGRAM tokens, where there are none of the above
    verbatim: list[bool] = field(default_factory=list)
    probes: dict[int, list[int]] = field(default_factory=dict)  # place of a hash -> completions that can only stand where it does
    unprobed: list[int] = field(default_factory=list)  # completions without any hash
    present: np.ndarray | None = None  # (hashes looked for,) whether each stands in train

    def add(self, file: CleanFile, windows: np.ndarray) -> None:
        """Take up the completions of a test file."""
        hashes, short_hashes = ngram_hashes(file.token_ids, LEAK_NGRAM), ngram_hashes(file.token_ids, SHORT_NGRAM)
        for _, cut, end, _, first, last in windows.tolist():
            self.completions.append(file.text[cut:end].strip())
            self.grams.append(hashes[first:max(first, last - LEAK_NGRAM + 1)])
            self.short_grams.append(short_hashes[first:max(first, last - SHORT_NGRAM + 1)] if not len(self.grams[-1]) else hashes[:0])
            self.verbatim.append(False)

    def choose_probes(self, wanted: np.ndarray) -> None:
        """Choose for each completion the one of its hashes that the fewest others hold; `wanted`: all hashes, sorted.

        Not its first or last: at its ends a completion may be cut into other tokens where something else stands beside it.
        """
        self.present = np.zeros(len(wanted), dtype=bool)
        inner = [np.unique(np.searchsorted(wanted, grams[1:-1] if len(grams) > 2 else grams)) for grams in
                 (long if len(long) else short for long, short in zip(self.grams, self.short_grams, strict=True))]
        frequency = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *inner]), minlength=len(wanted))
        for i, places in enumerate(inner):
            if len(places):
                self.probes.setdefault(int(places[frequency[places].argmin()]), []).append(i)
            else:
                self.unprobed.append(i)

    def search(self, hits: np.ndarray, text: str) -> None:
        """Look for completions in a train file's text, of which `hits` are the places of the hashes that some completion holds."""
        self.present[hits] = True
        candidates = [i for place in hits.tolist() for i in self.probes.get(place, ())] + self.unprobed
        for i in candidates:
            self.verbatim[i] = self.verbatim[i] or self.completions[i] in text

    def shares(self, wanted: np.ndarray) -> dict[str, dict[str, float]]:
        """Return the shares of completions that were found, for all of them and without the trivial ones."""
        result = {}
        found = [self.present[np.searchsorted(wanted, grams)] for grams in self.grams]
        for name, chosen in (("all", list(range(len(found)))),
                             ("without trivial ones", [i for i, text in enumerate(self.completions) if not is_trivial(text)])):
            number = max(1, len(chosen))
            means = [found[i].mean() for i in chosen if len(found[i])]
            result[name] = {"completions": len(chosen), "verbatim_in_train": round(sum(self.verbatim[i] for i in chosen) / number, 4),
                            "any_13_gram_in_train": round(sum(bool(found[i].any()) for i in chosen) / number, 4),
                            "mean_share_of_13_grams_in_train": round(float(np.mean(means)) if means else 0.0, 4)}
        return result


def measure_leakage(read: Callable[[], Iterator[CleanFile]], ways: dict[str, list[str | None]], keep_large_values: bool) -> dict[str, Any]:
    """Return for each way to split the shares of test completions that can be found in its train split.

    `read` yields the same files each time it is called, `ways` gives each file's split.  A completion is verbatim in
    train if a train file holds its text, white space at the ends aside.  Runs of LEAK_NGRAM tokens are compared by 64-bit
    hashes.  Time: two passes over the files; memory: the test splits.
    """
    sides = [LeakSide(name, splits) for name, splits in ways.items()]
    for number, file in enumerate(read()):
        for side in sides:
            if side.splits[number] == "test":
                side.add(file, windows_of(file, "test", keep_large_values))
    wanted = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *(g for side in sides for g in side.grams + side.short_grams)]))
    widths = (LEAK_NGRAM, SHORT_NGRAM) if any(len(g) for side in sides for g in side.short_grams) else (LEAK_NGRAM,)
    shift = np.uint64(64 - LEAK_FILTER_BITS)
    possible = np.zeros(1 << LEAK_FILTER_BITS, dtype=bool)  # most hashes of a train file are none of those looked for: told by a look-up
    possible[wanted >> shift] = True
    for side in sides:
        side.choose_probes(wanted)
    for number, file in enumerate(read()):
        training = [side for side in sides if side.splits[number] == "train"]
        if training and len(wanted):
            hashes = np.concatenate([ngram_hashes(file.token_ids, width) for width in widths])
            hashes = np.unique(hashes[possible[hashes >> shift]])
            places = np.searchsorted(wanted, hashes)
            hits = places[wanted[np.minimum(places, len(wanted) - 1)] == hashes]
        else:
            hits = np.zeros(0, dtype=np.int64)
        for side in training:
            side.search(hits, file.text)
    return {side.name: side.shares(wanted) for side in sides}


_TRIVIAL_LINE = re.compile(r"\s*(?:(?:import|package)\b.*|[\w.*]*|[\W_]*)\s*")


def is_trivial(completion: str) -> bool:
    """Return whether a completion holds nothing but imports, package lines, lone words and closing brackets."""
    return all(_TRIVIAL_LINE.fullmatch(line) for line in completion.splitlines())


def draw_report(counts: Counter, statistics: Statistics, path: Path) -> None:
    """Draw what became of the files, the lengths of the examples and where they were cut, as a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
    fates = {name: number for name, number in counts.most_common() if name.startswith(("files in ", "dropped, ")) and number}
    bars = axes[0].barh(list(fates)[::-1], list(fates.values())[::-1], color="#7f52ff")
    axes[0].bar_label(bars, fmt="{:,.0f}", padding=3)
    axes[0].set_xlim(1, 10 * max(fates.values()))
    axes[0].set(title="Files", xscale="log", xlabel="files (log scale)")
    for name, color in (("prompt", "#9aa5b1"), ("completion", "#7f52ff")):
        lengths = statistics.lengths[name]
        axes[1].plot(np.arange(len(lengths)), lengths / max(1, lengths.sum()), label=name, color=color)
    axes[1].set(title="Lengths", xlabel="tokens", ylabel="share of the examples (log scale)", yscale="log")
    axes[1].legend()
    kinds = dict(statistics.boundaries.most_common(12))
    axes[2].barh(list(kinds)[::-1], np.array(list(kinds.values()))[::-1] / statistics.boundaries.total(), color="#7f52ff")
    axes[2].set(title="Where prompts end", xlabel="share of the examples")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def report_text(counts: Counter, statistics: Statistics, leakage: dict[str, Any], data: Any, seed: int) -> str:
    """Return report.md: counts, lengths, cuts, leakage, and five random examples as the model will see them."""
    lines = ["# What became of the files", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {number:,} |" for name, number in sorted(counts.items())]
    lines += ["", "![files, lengths and cuts](report.png)", "", "# Lengths in tokens", "",
              "| | min | 25 % | median | 75 % | max |", "|---|---:|---:|---:|---:|---:|"]
    lines += [f"| {name} | " + " | ".join(str(n) for n in statistics.quantiles(name).values()) + " |" for name in statistics.lengths]
    lines += ["", "# Where prompts end", "", "| place | share |", "|---|---:|"]
    for kind, number in statistics.boundaries.most_common():
        place = "behind `" + kind.removeprefix("behind ").replace("|", "\\|") + "`" if kind.startswith("behind ") else kind
        lines.append(f"| {place.replace('```', '`` ` ``')} | {number / statistics.boundaries.total():.2%} |")
    lines += ["", "# Leakage from train into test", "", *leakage_table(leakage), "", "# Five random examples of train", ""]
    for i in random.Random(seed).sample(range(len(data["train"])), min(5, len(data["train"]))):
        row = data["train"][i]
        lines += [f"Example {i}, cut from line {row['source_line']} of the raw file. Prompt:", "", *fenced(row["prompt"]),
                  "Completion:", "", *fenced(row["completion"])]
    return "\n".join(lines) + "\n"


def fenced(text: str) -> list[str]:
    """Return text as a Markdown code block, with a fence that it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return [fence, text.removesuffix("\n"), fence, ""]


def leakage_table(leakage: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown table of `measure_leakage`."""
    lines = ["| split | test completions | number | verbatim in train | some 13-gram in train | mean share of 13-grams in train |",
             "|---|---|---:|---:|---:|---:|"]
    for way, kinds in leakage.items():
        for kind, share in kinds.items():
            lines.append(f"| {way} | {kind} | {share['completions']:,} | {share['verbatim_in_train']:.1%} | "
                         f"{share['any_13_gram_in_train']:.1%} | {share['mean_share_of_13_grams_in_train']:.1%} |")
    return lines


# ---------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------

def tokenizer_json(name: str) -> str:
    """Return the fast tokenizer of a local folder or hub model as JSON; PipelineError where it cannot be used."""
    from tokenizers import Tokenizer

    data = read_tokenizer(name)
    try:
        text = data.decode()
        Tokenizer.from_str(text)  # here, not in a worker process, whose death says nothing
    except Exception as error:  # the library raises nothing more precise
        raise PipelineError(f"model {name}: its tokenizer.json cannot be read ({first_line(error)}); fetch it again") from None
    return text


def read_tokenizer(name: str) -> bytes:
    """Return the bytes of a model's tokenizer.json, without importing transformers if possible."""
    check_local_model_or_tokenizer(name)
    local = Path(name) / "tokenizer.json"
    if local.is_file():
        return local.read_bytes()
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with hub_errors("model", name):
            try:
                return Path(hf_hub_download(name, "tokenizer.json")).read_bytes()
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                pass  # an older tokenizer format, which transformers converts
    tokenizer = load_tokenizer(name)
    if not tokenizer.is_fast:
        raise PipelineError(f"model {name}: has no fast tokenizer, whose offsets are needed; use another model")
    return tokenizer.backend_tokenizer.to_str().encode()


def check_local_model_or_tokenizer(name: str) -> None:
    """As `check_local_model`, but a folder that holds only a tokenizer will do."""
    if not (Path(name) / "tokenizer.json").is_file():
        check_local_model(name)


def batches_of_lines(path: Path, limit: int, advance: Callable[[int], Any]) -> Iterator[tuple[Path, int, list[bytes]]]:
    """Yield (path, number of the first line, lines) of the raw file; `advance` is told the bytes read."""
    with open(path, "rb") as file:
        lines = itertools.islice(file, limit or None)
        for first in itertools.count(1, FILES_PER_TASK):
            batch = list(itertools.islice(lines, FILES_PER_TASK))
            if not batch:
                return
            advance(sum(map(len, batch)))
            yield path, first, batch


@contextlib.contextmanager
def worker_pool(args: argparse.Namespace) -> Iterator[ProcessPoolExecutor]:
    """Yield the worker processes, and end them whatever happens."""
    # Spawned, not forked: a fork would copy threads and locks of libraries in an undefined state.
    options = {key: getattr(args, key) for key in ("keep_copyright", "keep_generated", "keep_short", "chunk_tokens", "stride_tokens")}
    pool = ProcessPoolExecutor(args.num_proc, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker,
                               initargs=(tokenizer_json(args.model_name_or_path), options))
    try:
        for _ in range(args.num_proc):
            pool.submit(os.getpid)  # they start while this process goes on
        yield pool
    except BrokenProcessPool:
        raise PipelineError("a worker process was killed, for want of memory as a rule; lower --num_proc") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()


def clean_corpus(args: argparse.Namespace, pool: ProcessPoolExecutor, spool: IO, counts: Counter) -> tuple[list[bytes], np.ndarray]:
    """Clean every file, in all processes, and put those that can serve into `spool`; return digests and signatures."""
    from tqdm import tqdm

    digests: list[bytes] = []
    signatures = bytearray()  # one block that grows: a list of arrays would be there twice when they are joined
    with tqdm(total=args.input_file.stat().st_size, unit="B", unit_scale=True, desc="cleaning", disable=None) as bar:
        tasks = batches_of_lines(args.input_file, args.limit, bar.update)
        for files in map_in_order(pool, packed_files, tasks, window=3 * args.num_proc):
            for reason, digest, signature, packed in files:
                counts["files read"] += 1
                if reason:
                    counts[f"dropped, {reason}"] += 1
                    continue
                digests.append(digest)
                signatures += signature.tobytes()
                spool.write(packed)
    spool.flush()
    return digests, np.frombuffer(signatures, dtype=np.uint32).reshape(-1, PERMUTATIONS)


def read_spool(path: Path, number: int) -> Iterator[CleanFile]:
    """Yield the `number` files that this same run put into its spool."""
    with open(path, "rb") as spool:
        for _ in range(number):
            yield pickle.load(spool)  # our own file of this run, in a folder that only this run uses


def leakage_in_spool(path: Path, ways: dict[str, list[str | None]], keep_large_values: bool) -> dict[str, Any]:
    """Return `measure_leakage` of a spool; a worker process computes it while the parent writes the examples."""
    number = len(next(iter(ways.values())))
    return measure_leakage(lambda: read_spool(path, number), ways, keep_large_values)


def windows_of(file: CleanFile, split: str, keep_large_values: bool) -> np.ndarray:
    """Return the file's windows in a split, less those that hold a very large value."""
    windows = file.train_windows if split == "train" else file.eval_windows
    if keep_large_values or not file.has_large_value:
        return windows
    return windows[[not LARGE_VALUE.search(file.text, start, end) for start, end in windows[:, [0, 2]].tolist()]]


def write_examples(files: Iterable[CleanFile], splits: list[str | None], args: argparse.Namespace, folder: Path,
                   counts: Counter, statistics: "Statistics") -> Any:
    """Write the examples of every file that has a split; return the DatasetDict, which lies in `folder`."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features({"prompt": datasets.Value("string"), "completion": datasets.Value("string"),
                                  "source_line": datasets.Value("int64")})
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(ArrowWriter(path=str(folder / f"{split}.arrow"), features=features))
                   for split in SPLITS}
        rows = {split: {name: [] for name in features} for split in SPLITS}
        for file, split in zip(files, splits, strict=True):
            if split is None:
                continue
            windows = windows_of(file, split, args.keep_large_values)
            every = file.train_windows if split == "train" else file.eval_windows
            counts["examples skipped, very large value"] += len(every) - len(windows)
            counts[f"files in {split}"] += bool(len(windows))
            counts[f"examples in {split}"] += len(windows)
            if len(windows):
                statistics.add(file.text, windows)
                places = windows[:, :3].tolist()
                prompts = [file.text[start:cut] for start, cut, _ in places]
                completions = [file.text[cut:end] for _, cut, end in places]
                pending = rows[split]
                pending["prompt"] += prompts
                pending["completion"] += completions
                pending["source_line"] += [file.source_line] * len(prompts)
                if len(pending["prompt"]) >= ROWS_PER_WRITE:
                    writers[split].write_batch(pending)
                    rows[split] = {name: [] for name in features}
        empty = [split for split in SPLITS if not counts[f"examples in {split}"]]
        if empty:
            raise PipelineError(f"{args.input_file}: the corpus is too small for three splits: {' and '.join(empty)} would hold "
                                f"no example ({sum(s is not None for s in splits)} files can serve); collect more files, "
                                "raise --validation_fraction and --test_fraction, or try another --seed")
        for split, writer in writers.items():
            if rows[split]["prompt"]:
                writer.write_batch(rows[split])
            writer.finalize()
    datasets.disable_progress_bars()  # three more bars, for what takes a second
    return datasets.DatasetDict({split: datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in SPLITS})


def preprocess(args: argparse.Namespace) -> None:
    """Write the data set of --input_file to --output_dir."""
    started = time.time()
    if args.validation_fraction + args.test_fraction >= 1:
        raise PipelineError("--validation_fraction and --test_fraction leave nothing to train on; lower them")
    if not args.input_file.is_file():
        raise PipelineError(f"--input_file {args.input_file}: no such file; run parse_data.py first, or name another file")
    check_replaceable(args.output_dir, "dataset_dict.json")
    if args.hf_repository:
        check_hub_write(args.hf_repository, "dataset")
    raw_manifest = check_manifest(args.input_file)
    counts: Counter = Counter()
    with output_lock(args.output_dir), atomic_folder(args.output_dir) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        with worker_pool(args) as pool:
            import datasets  # noqa: F401  # takes a second, in which the worker processes start
            with open(scratch / "spool", "wb") as spool:
                digests, signatures = clean_corpus(args, pool, spool, counts)
            if not digests:
                raise PipelineError(f"{args.input_file}: no file can serve ({describe(counts) or 'it is empty'}); "
                                    "check it, or the --keep_ switches")
            splits, dropped = assign_splits(digests, signatures, args)
            counts.update({f"dropped, {reason}": number for reason, number in dropped.items()})
            # what splitting file by file, and dropping nothing, would have given
            naive = [choose_split(digest + b"%d" % i, args.seed, args.validation_fraction, args.test_fraction)
                     for i, digest in enumerate(digests)]
            leaking = pool.submit(leakage_in_spool, scratch / "spool", {"by file, duplicates kept": naive, "this data set": splits},
                                  args.keep_large_values)
            statistics = Statistics(args.chunk_tokens)
            data = write_examples(read_spool(scratch / "spool", len(digests)), splits, args, scratch, counts, statistics)
            drawing = pool.submit(draw_report, counts, statistics, folder / "report.png")
            data.save_to_disk(str(folder))
            leakage = leaking.result()
            drawing.result()
        (folder / "report.md").write_text(report_text(counts, statistics, leakage, data, args.seed), encoding="utf-8")
        del data
        shutil.rmtree(scratch)
        outputs = hash_files(folder)
        arrow = {name: digest for name, digest in outputs.items() if name.endswith(".arrow")}  # state.json differs in every run
        write_manifest(folder / "manifest.json", args, outputs, started, data_hash=combined_hash(arrow),
                       inputs={args.input_file.name: sha256_file(args.input_file)}, counts=dict(counts),
                       leakage=leakage, sources=[{key: source[key] for key in ("repository", "commit", "license_file")}
                                for source in (raw_manifest or {}).get("sources", [])])
    for name, number in sorted(counts.items()):
        print(f"  {number:>9,} {name}")
    shares = leakage["this data set"]["without trivial ones"]
    print(f"  leakage: {shares['verbatim_in_train']:.1%} of the test completions stand verbatim in train, "
          f"{shares['any_13_gram_in_train']:.1%} share a run of 13 tokens with it (imports and lone brackets aside)")
    print(f"wrote {args.output_dir} (report.md says what is in it) in {duration(time.time() - started)}")
    if args.hf_repository:
        publish(args, counts, leakage)


def publish(args: argparse.Namespace, counts: Counter, leakage: dict[str, Any]) -> None:
    """Publish the splits as Parquet, the raw file, the report and a data set card to --hf_repository, in one commit."""
    import datasets

    staged = args.output_dir.with_name(f"{args.output_dir.name}.hub")
    with output_lock(staged), atomic_folder(staged) as folder:
        for split, data in datasets.load_from_disk(str(args.output_dir)).items():
            (folder / "data").mkdir(exist_ok=True)
            data.to_parquet(str(folder / "data" / f"{split}.parquet"))
        raw = folder / "raw" / args.input_file.name
        raw.parent.mkdir()
        shutil.copyfile(args.input_file, raw)
        for name in ("report.md", "report.png"):
            shutil.copyfile(args.output_dir / name, folder / name)
        manifest = json.loads((args.output_dir / "manifest.json").read_bytes())
        (folder / "README.md").write_text(data_set_card(args, manifest, counts, leakage), encoding="utf-8")
        write_json(folder / "manifest.json", sealed_manifest({**manifest, "outputs": hash_files(folder)}))
    commit = push_folder(staged, args.hf_repository, "Add the data set", repo_type="dataset")
    shutil.rmtree(staged)
    print(f"published data set {args.hf_repository} (commit {commit})")


def data_set_card(args: argparse.Namespace, manifest: dict[str, Any], counts: Counter, leakage: dict[str, Any]) -> str:
    """Return the data set's README.md: what `load_dataset` reads, where it comes from, what is in it, what leaks."""
    lines = ["---", "task_categories:", "- text-generation", "tags:", "- code", "configs:", "- config_name: default", "  data_files:"]
    for split in SPLITS:
        lines += [f"  - split: {split}", f"    path: data/{split}.parquet"]
    lines += ["---", f"# {args.hf_repository}", "",
              f"Pairs of prompt and completion: a chunk of about {args.chunk_tokens} tokens of {args.model_name_or_path}, and the chunk "
              "that follows it in its file. Splits are made by file and by cluster of near-duplicates.", "",
              "```python", "from datasets import load_dataset", f'data = load_dataset("{args.hf_repository}")', "```", "",
              f"`raw/{args.input_file.name}` holds the source files as they were collected, one JSON object a line.", "",
              "## Sources", "",
              "| repository | commit | licence file |", "|---|---|---|"]
    lines += [f"| {s['repository']} | {s['commit'] or ''} | {s['license_file'] or 'not found'} |" for s in manifest["sources"]]
    lines += ["", "The code keeps the licences of these sources.", "", "## Counts", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {number:,} |" for name, number in sorted(counts.items())]
    return "\n".join([*lines, "", "## Leakage from train into test", "", *leakage_table(leakage)]) + "\n"


def describe(counts: Counter) -> str:
    """Return the counts on one line."""
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input_file", type=Path, default=Path("data/kotlin_code_raw.jsonl"), help="the raw file (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("data/kotlin_prepared_dataset"),
        help="folder of the data set; replaced if this script wrote it (default: %(default)s)")
    add("--hf_repository", help="publish the data set to this hub repository (default: stay local)")
    add("--model_name_or_path", default="microsoft/phi-1_5", help="model whose tokenizer counts (default: %(default)s)")
    add("--chunk_tokens", type=positive_int, default=100, help="length of a chunk, in tokens (default: %(default)s)")
    add("--stride_tokens", type=positive_int, default=35,
        help="by how many tokens the window slides in train (default: %(default)s)")
    add("--test_fraction", type=fraction, default=0.01, help="share of the files (default: %(default)s)")
    add("--validation_fraction", type=fraction, default=0.01, help="share of the files (default: %(default)s)")
    add("--near_duplicates", choices=("drop", "keep"), default="drop",
        help="drop: one file of a cluster of near-duplicates is kept; keep: all, in one split (default: %(default)s)")
    add("--keep_copyright", action="store_true", help="leave copyright comments in place")
    add("--keep_short", action="store_true", help="keep files with fewer than two lines")
    add("--keep_generated", action="store_true", help="keep files that say that a machine generated them")
    add("--keep_large_values", action="store_true",
        help=f"keep examples with {MAX_DIGIT_RUN} digits or {MAX_UNBROKEN_RUN} characters without white space in a row")
    add("--seed", type=int, default=0, help="of the splits (default: %(default)s)")
    add("--limit", type=non_negative_int, default=0, help="read only so many files; 0: all (default: %(default)s)")
    add("--num_proc", type=positive_int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1, help="processes; the result does not depend on it (default: all cores)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(preprocess, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
