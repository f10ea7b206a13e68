"""pipeline/preparation/duplicates.py: how near-duplicates are found, and what becomes of them."""
from collections.abc import Callable

import numpy as np
from preparation_runs import Prepared

from pipeline.preparation.duplicates import (
    MINHASH_SEED,
    NGRAM,
    PERMUTATIONS,
    empty_sketch,
    minhash_signature,
    ngram_hashes,
)
from pipeline.preparation.splits import SPLITS


def test_signature_is_the_library_s_own_of_the_same_shingles() -> None:
    """The short cut by which a block of hashes reaches datasketch changes what it computes."""
    from datasketch import MinHash

    token_ids = np.random.default_rng(0).integers(0, 400, 3000).astype(np.uint16)
    sketch = MinHash(PERMUTATIONS, seed=MINHASH_SEED, hashfunc=int)
    hashes = ngram_hashes(token_ids, NGRAM)
    for shingle in set((hashes >> np.uint64(32)).tolist()):
        sketch.update(shingle)
    assert minhash_signature(token_ids, empty_sketch()).tolist() == sketch.hashvalues.tolist()


def test_exact_duplicates_are_dropped(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """Copies of one file weigh more than other files, or are on both sides of a split."""
    header = "/* Copyright 2020 A */\n\n"
    data = prepare([*texts, header + texts[3], texts[5]])
    assert data.counts["dropped, exact duplicate"] == 2
    assert set().union(*data.lines.values()) == set(range(1, 41))


def near_duplicates(text: str, number: int) -> list[str]:
    """Return variants of a file that differ from it in one name."""
    return [text.replace("return", f"return /* {i} */", 1) for i in range(number)]


def test_near_duplicates_are_dropped(prepare: Callable[..., Prepared], texts: list[str],
                                     kotlin_file: Callable[[int], str]) -> None:
    """Variants of one file are on both sides of a split."""
    family = near_duplicates(kotlin_file(77), 8)
    data = prepare([*texts, *family])
    assert data.counts["dropped, near-duplicate"] == 7
    assert len(set().union(*data.lines.values()) - set(range(1, 41))) == 1


def test_kept_near_duplicates_never_straddle(prepare: Callable[..., Prepared], texts: list[str],
                                             kotlin_file: Callable[[int], str]) -> None:
    """--near_duplicates keep puts variants of one file into train and test."""
    families = [near_duplicates(kotlin_file(number), 6) for number in range(70, 76)]
    data = prepare([*texts, *(text for family in families for text in [*family, family[0]])],
                   "--near_duplicates", "keep")
    assert data.counts["dropped, exact duplicate"] == 6
    homes = []
    for number in range(6):
        lines = set(range(41 + 7 * number, 48 + 7 * number))
        holders = [split for split in SPLITS if data.lines[split] & lines]
        assert len(holders) == 1, f"family {number} is in {holders}"
        assert len(data.lines[holders[0]] & lines) == 6
        homes += holders
    assert len(set(homes)) > 1  # else this test would show nothing
