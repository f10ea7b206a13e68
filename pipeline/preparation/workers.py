"""The worker processes: each file is cleaned, tokenized, cut and hashed in one of them."""
import argparse
import contextlib
import functools
import hashlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.clean_file import CleanFile, Origin
from pipeline.data.large_values import has_large_value
from pipeline.data.near_duplicates import ShingleSets, shingles_of
from pipeline.data.syntax import extension_of, find_grammar
from pipeline.hub.secrets_scan import find_secrets, listed
from pipeline.methods.finding import find_methods
from pipeline.preparation.cleaning import DroppedFiles, clean
from pipeline.preparation.cutting import Choice, byte_lengths, cut_windows, encode, find_cuts, windows_of
from pipeline.preparation.leakage import Way, measure_leakage
from pipeline.preparation.provenance import origins
from pipeline.preparation.splits import Corpus
from pipeline.run.errors import PipelineError
from pipeline.run.jsonl import parse_json_line
from pipeline.run.progress import progress

LEAST_DISTINCT = 0.1  # of a file's tokens, the share of distinct 5-grams under which it repeats itself
BATCH_BYTES = 1 << 19  # of the raw file, that one process works on at a time: 100 files, or one large one
# What this process needs for every file: tokenizer, arguments.  Of this module alone.
_worker: dict[str, Any] = {}


def start_worker(tokenizer_json: str, options: dict[str, Any]) -> None:
    """Set up this process; called once in each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too and ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # source text that looks like a special token is only text
    _worker.update(options, tokenizer=tokenizer, byte_lengths=byte_lengths(tokenizer))


def end_with(parent: Any) -> None:
    """End this process when `parent` does; one that was killed outright cannot end its children itself."""
    parent.join()
    os._exit(1)


def clean_files(path: Path, first_line: int, lines: list[bytes], places: list[Origin]) -> list[CleanFile]:
    """Clean, tokenize, cut and hash the files on `lines` of the raw file; the first is line `first_line`.

    `places`: where each came from.
    """
    results: list[CleanFile] = []
    kept: list[tuple[int, Origin, str]] = []
    for number, (line, origin) in enumerate(zip(lines, places, strict=True), start=first_line):
        source = parse_json_line(path, number, line, {"file_text": str})["file_text"]
        text, reason = clean(source, origin.path, _worker)
        if reason:
            results.append(CleanFile(number, reason, origin))
        else:
            kept.append((number, origin, text))
    encoded = encode(_worker["tokenizer"], _worker["byte_lengths"], [text for _, _, text in kept])
    for (number, origin, text), (ids, offsets) in zip(kept, encoded, strict=True):
        file = cut_file(number, origin, text, ids, offsets)
        if not file.reason and not _worker["no_methods"]:
            grammar = find_grammar(extension_of(origin.path))
            file = file._replace(methods=find_methods(text, grammar, offsets, file.token_ids))
        results.append(file)
    return sorted(results, key=lambda file: file.source_line)


class Found(NamedTuple):
    """What the parent keeps of a file until its split is known; the rest goes through its spool, packed."""
    source_line: int
    reason: str | None  # why the file is dropped; None: it is kept, and the fields below are set
    origin: Origin
    digest: bytes
    shingles: np.ndarray | None
    train_examples: int
    packed: bytes
    packed_methods: bytes
    secrets: Counter  # how often each kind stands in its text


def packed_files(path: Path, first_line: int, lines: list[bytes], places: list[Origin]) -> list[Found]:
    """Return `clean_files` packed, searched for secrets: the parent only copies the pickled files to its
    spool."""
    found = []
    for file in clean_files(path, first_line, lines, places):
        secrets = Counter() if file.reason else find_secrets(file.text)
        if secrets and _worker["drop_secrets"]:
            file = CleanFile(file.source_line, "holds secrets", file.origin)
        packed, methods = (b"" if file.reason else pickle.dumps(part, protocol=5) for part in
                           (file._replace(shingles=None, methods=None), file.methods))
        examples = 0 if file.reason else len(file.train_windows)
        found.append(Found(file.source_line, file.reason, file.origin, file.digest, file.shingles, examples,
                           packed, methods, secrets))
    return found


def cut_file(number: int, origin: Origin, text: str, ids: np.ndarray, offsets: np.ndarray) -> CleanFile:
    """Return the file's windows, digest and shingles; `offsets`: (tokens, 2), where `ids` stand in it."""
    if not len(ids):
        return CleanFile(number, "too short for an example", origin)
    position, ranks = find_cuts(text, offsets)

    def windows(stride: int) -> np.ndarray:
        found = np.array(cut_windows(ranks, _worker["chunk_tokens"], stride), dtype=np.int64).reshape(-1, 3)
        return np.concatenate([position[found], found], axis=1)

    eval_windows = windows(0)
    if not len(eval_windows):
        return CleanFile(number, "too short for an example", origin)
    token_ids = ids.astype(np.uint16 if _worker["tokenizer"].get_vocab_size() <= 1 << 16 else np.uint32)
    shingles = shingles_of(token_ids)
    if not _worker["keep_repetitive"] and len(shingles) < LEAST_DISTINCT * len(token_ids):
        return CleanFile(number, "repeats itself", origin)
    return CleanFile(number, None, origin, hashlib.sha256(text.encode()).digest(), text,
                     windows(_worker["stride_tokens"]), eval_windows, token_ids,
                     shingles, has_large_value(text))


def shingle_texts(texts: list[str]) -> list[tuple[bytes, np.ndarray]]:
    """Return the digest and the shingles of cleaned texts."""
    results = []
    for text, encoding in zip(texts, _worker["tokenizer"].encode_batch(texts, add_special_tokens=False),
                              strict=True):
        shingles = shingles_of(np.array(encoding.ids or [0], dtype=np.uint32))
        results.append((hashlib.sha256(text.encode()).digest(), shingles))
    return results


def map_in_order(pool: ProcessPoolExecutor, function: Callable, tasks: Iterable[tuple],
                 window: int) -> Iterator[Any]:
    """Yield `function(*task)` in the order of the tasks, with at most `window` of them under way."""
    running: deque[Future] = deque()
    for task in tasks:
        running.append(pool.submit(function, *task))
        if len(running) >= window:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def batches_of_lines(path: Path, limit: int, advance: Callable[[int], Any],
                     places: Iterator[Origin]) -> Iterator[tuple[Path, int, list[bytes], list[Origin]]]:
    """Yield (path, number of the first line, lines, their origins) of the raw file, BATCH_BYTES of lines or
    one larger line at a time; `advance` is told the bytes read."""
    batch: list[bytes] = []
    first, size = 1, 0
    with open(path, "rb") as file:
        for line in itertools.islice(file, limit or None):
            if batch and size + len(line) > BATCH_BYTES:
                advance(size)
                yield path, first, batch, list(itertools.islice(places, len(batch)))
                first, batch, size = first + len(batch), [], 0
            batch.append(line)
            size += len(line)
    if batch:
        advance(size)
        yield path, first, batch, list(itertools.islice(places, len(batch)))


@contextlib.contextmanager
def worker_pool(args: argparse.Namespace, tokenizer_json: str) -> Iterator[ProcessPoolExecutor]:
    """Yield the worker processes, and end them whatever happens."""
    wanted = ("keep_copyright", "keep_generated", "keep_short", "keep_repetitive", "chunk_tokens",
              "stride_tokens", "drop_secrets", "no_methods")
    options = {key: getattr(args, key) for key in wanted}
    # Spawned, not forked: a fork would copy threads and locks of libraries in an undefined state.
    pool = ProcessPoolExecutor(args.num_proc, mp_context=multiprocessing.get_context("spawn"),
                               initializer=start_worker, initargs=(tokenizer_json, options))
    try:
        for _ in range(args.num_proc):
            pool.submit(os.getpid)  # they start while this process goes on
        yield pool
    except BrokenProcessPool:
        raise PipelineError("a worker process was killed, for want of memory as a rule; lower "
                            "--num_proc") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()


def clean_corpus(args: argparse.Namespace, pool: ProcessPoolExecutor, spool: IO, methods: IO, counts: Counter,
                 dropped: DroppedFiles, side_of: Callable[[Origin], str | None]) -> tuple[Corpus, list[int]]:
    """Clean every file, and put those that can serve into `spool` and their methods into another.

    Returns what is kept of them in memory, and where each begins in the spool.  `side_of` gives the split
    that a file is to keep.
    """
    corpus, places_in_spool, written = Corpus(ShingleSets(Path(f"{spool.name}.shingles"))), [], 0
    with_secrets: dict[str, Counter] = {}
    with (origins(args.input_file) as places,
          progress(total=args.input_file.stat().st_size, unit="B", scaled=True, desc="cleaning") as bar):
        tasks = batches_of_lines(args.input_file, args.limit, bar.update, places)
        for files in map_in_order(pool, packed_files, tasks, window=3 * args.num_proc):
            for file in files:
                counts["files read"] += 1
                if file.secrets:
                    place = file.origin.path or f"line {file.source_line}"
                    with_secrets.setdefault(place, Counter()).update(file.secrets)
                if file.reason:
                    counts[f"dropped, {file.reason}"] += 1
                    dropped.add(file.source_line, file.origin, file.reason)
                    continue
                corpus.source_lines.append(file.source_line)
                corpus.digests.append(file.digest)
                corpus.shingles.add(file.shingles)
                corpus.train_examples.append(file.train_examples)
                corpus.sides.append(side_of(file.origin))
                places_in_spool.append(written)
                spool.write(file.packed)
                methods.write(file.packed_methods)
                written += len(file.packed)
    spool.flush()
    if with_secrets:
        counts["files with secrets"] = len(with_secrets)
        counts.update({f"secrets, {kind}": n for kind, n in sum(with_secrets.values(), Counter()).items()})
        print(f"secrets in {listed(with_secrets)}: "
              + ("left out" if args.drop_secrets else "--drop_secrets leaves such files out"))
    return corpus, places_in_spool


def read_spool(path: Path, number: int) -> Iterator[Any]:
    """Yield what this same run put into a spool, a `CleanFile` or its `FoundMethods` for each of `number`
    files."""
    with open(path, "rb") as spool:
        for _ in range(number):
            yield pickle.load(spool)  # our own file of this run, in a folder that only this run uses


def count_examples(path: Path, places: list[int], choice: Choice) -> Callable[[int, str], int]:
    """Return a function that gives the number of examples of file i of the spool in a split; `places`: where
    each file begins in it."""
    @functools.cache
    def examples_in(i: int, split: str) -> int:
        with open(path, "rb") as spool:
            spool.seek(places[i])
            return len(windows_of(pickle.load(spool), split, choice))
    return examples_in


def leakage_in_spool(path: Path, ways: dict[str, Way]) -> dict[str, Any]:
    """Return `measure_leakage` of a spool; for a worker process, while the parent writes the examples."""
    number = len(next(iter(ways.values()))[0])
    return measure_leakage(lambda: read_spool(path, number), ways)
