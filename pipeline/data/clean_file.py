"""A cleaned file, as the parts of stage 2 hand it on."""
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test")


class Origin(NamedTuple):
    """Where a file came from; all None where nothing is known."""
    repository: str | None = None
    path: str | None = None
    license_file: str | None = None
    license: str | None = None


class CleanFile(NamedTuple):
    """One file after cleaning, ready to be written once its cluster and split are known."""
    source_line: int  # its line in the raw file, from 1
    reason: str | None  # why it is dropped; None: it is kept, and the fields below are set
    origin: Origin = Origin()
    digest: bytes = b""  # SHA-256 of the cleaned text
    text: str = ""
    # (examples, 6): prompt start, cut, completion end; in characters, then in tokens
    train_windows: np.ndarray | None = None
    eval_windows: np.ndarray | None = None
    token_ids: np.ndarray | None = None  # (tokens,) uint16 or uint32
    shingles: np.ndarray | None = None  # (n,) sorted uint32, of `shingles_of`
    has_large_value: bool = False
    methods: Any = None  # a `FoundMethods`, where the language has a grammar
