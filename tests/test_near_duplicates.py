"""pipeline/data/near_duplicates.py: how near-duplicates are found, and what becomes of them."""
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_runs import Prepared

from pipeline.data.clean_file import SPLITS
from pipeline.data.near_duplicates import (
    MINHASH_SEED,
    MOST_LEADERS,
    NEAR_DUPLICATE_JACCARD,
    NGRAM,
    PERMUTATIONS,
    cluster_near_duplicates,
    empty_sketch,
    minhash_signature,
    ngram_hashes,
)
from pipeline.preparation import duplicates


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


def changed(signatures: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """Return the signatures with a share of their values drawn anew."""
    where = draw.random(signatures.shape) < share
    return np.where(where, draw.integers(0, 2**32, signatures.shape, dtype=np.uint32), signatures)


def clusters_pair_by_pair(signatures: np.ndarray) -> list[int]:
    """Return the first file of each file's cluster: what links connect, of all pairs that share a band."""
    first = list(range(len(signatures)))
    bands = signatures[:, :255].reshape(len(signatures), 51, 5)
    for i in range(len(signatures)):
        alike = (signatures == signatures[i]).mean(axis=1) >= NEAR_DUPLICATE_JACCARD
        for j in np.flatnonzero(alike & (bands == bands[i]).all(axis=2).any(axis=1)).tolist():
            low, high = sorted((first[i], first[j]))
            first = [low if cluster == high else cluster for cluster in first]
    return first


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.05, 0.1, 0.15, 0.3])), max_size=40),
       st.sampled_from([0.0, 0.1, 0.4, 1.0]), st.integers(0, 2**32 - 1))
def test_clusters_are_those_of_a_comparison_pair_by_pair(files: list[tuple[int, float]], apart: float,
                                                         seed: int) -> None:
    """Files that are no near-duplicates are dropped, or near-duplicates are on both sides of a split."""
    draw = np.random.default_rng(seed)
    origin = np.repeat(draw.integers(0, 2**32, (1, PERMUTATIONS), dtype=np.uint32), 4, axis=0)
    families = changed(origin, apart, draw)
    rows = [changed(families[family], share, draw) for family, share in files]
    signatures = np.array(rows, dtype=np.uint32).reshape(-1, PERMUTATIONS)
    assert cluster_near_duplicates(signatures).tolist() == clusters_pair_by_pair(signatures)


@pytest.mark.parametrize(("family", "share"), [(2, 0.03), (20, 0.1), (1, 0.0), (600, 0.12)])
def test_families_are_found_in_buckets_of_hundreds(family: int, share: float) -> None:
    """Files with the same boilerplate share their buckets, and those alike among them are no longer found,
    or found in another order of the files alone."""
    draw = np.random.default_rng(0)
    origin = np.repeat(draw.integers(0, 2**32, (1, PERMUTATIONS), dtype=np.uint32), 600 // family, axis=0)
    signatures = changed(np.repeat(changed(origin, 0.3, draw), family, axis=0), share, draw)
    assert max(max(np.unique(signatures[:, begin:begin + 5], axis=0, return_counts=True)[1])
               for begin in range(0, 255, 5)) > MOST_LEADERS
    assert cluster_near_duplicates(signatures).tolist() == [i // family * family for i in range(600)]
    order = draw.permutation(600)
    found = cluster_near_duplicates(signatures[order])
    assert len(set(found.tolist())) == 600 // family
    assert (order[found] // family == order // family).all()


@pytest.mark.parametrize("kind", ["copies", "variants", "boilerplate"])
def test_the_work_of_a_file_does_not_grow_with_their_number(kind: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A code base with thousands of copies or variants of one file takes hours."""
    draw, compared = np.random.default_rng(0), []
    alike = duplicates._alike
    monkeypatch.setattr(duplicates, "_alike", lambda some, others, jaccard: compared.append(len(some))
                        or alike(some, others, jaccard))
    work = []
    for number in (500, 1000, 2000):
        copies = np.repeat(draw.integers(0, 2**32, (1, PERMUTATIONS), dtype=np.uint32), number, axis=0)
        signatures = changed(copies, {"copies": 0.0, "variants": 0.1, "boilerplate": 0.3}[kind], draw)
        compared.clear()
        found = cluster_near_duplicates(signatures)
        assert len(set(found.tolist())) == (number if kind == "boilerplate" else 1)
        work.append(sum(compared) / number)
    assert work[2] <= 1.2 * work[1] <= 1.2 * 1.2 * work[0] + 0.1


def test_no_files_give_no_clusters() -> None:
    """A raw file of which nothing can serve ends in a traceback."""
    assert cluster_near_duplicates(np.zeros((0, PERMUTATIONS), dtype=np.uint32)).tolist() == []
