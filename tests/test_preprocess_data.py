"""preprocess_data.py: what it removes, where it cuts, who is in which split, and what happens to bad input."""
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import preprocess_data
from preprocess_data import (
    LINE,
    OTHER_PUNCTUATION,
    STATEMENT,
    WHITE_SPACE,
    WITHIN_WORD,
    choose_split,
    cut_windows,
    drop_reason,
    find_cuts,
    strip_copyright,
)

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")
CODE = "package a\n\nfun main() {}\n"
FRACTIONS = ("--validation_fraction", "0.25", "--test_fraction", "0.25", "--chunk_tokens", "30", "--stride_tokens", "10")


# ---------------------------------------------------------------------------------------------------------------
# Copyright comments
# ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("comment", [
    "/* Copyright 2020 A. */",
    "/*\n * Copyright 2010-2024 JetBrains s.r.o.\n * Use of this source code is governed by the Apache 2.0 license.\n */",
    "/**\n * Copyright (c) 2020 A\n */",
    "/***** COPYRIGHT *****/",
    "// Copyright 2020 A\n// All rights reserved.",
    "// Copyright 2020 A",
    "//Copyright 2020 A\n  //   and others",
    "// SPDX-License-Identifier: Apache-2.0",
    "/* SPDX-License-Identifier: MIT */",
    "# Copyright 2020 A",
    "/*\n * Licensed under the Apache License, Version 2.0 (the \"License\");\n */",
    "/* Licensed to the ASF under one or more contributor license agreements. */",
    "/* © 2020 A */",
    "/* (c) 2020 A */",
    "/* (C) 1999 A */",
    "// All rights reserved",
    "/* This file is released into the public domain. */",
    "/* Permission is hereby granted, free of charge, to any person */",
    "/* See the LICENSE file. */",
    "// Distributed under the MIT license",
    "/* GNU General Public License */",
    "/* Copyright 2020 A */\n\n// SPDX-License-Identifier: MIT",
    "// Copyright 2020 A\n\n/* Licensed under X */",
    "/* Copyright // 2020 */",
    "/* copyright\n\n\n   with blank lines */",
    "/* Copyright 2020 ООО «Ромашка» 株式会社 */",
])
@pytest.mark.parametrize(("before", "between"), [("", "\n\n"), ("\ufeff", "\n"), ("\n \n\t", "\n\n\n")])
def test_copyright_comments_go(comment: str, before: str, between: str) -> None:
    """The model learns to write licence headers."""
    assert strip_copyright(before + comment + between + CODE) == CODE


@pytest.mark.parametrize("source", [
    CODE,
    "",
    "\n\n" + CODE,
    "/* Parses numbers. */\n" + CODE,
    "/** Says hello. */\n" + CODE,
    "// The entry point\n" + CODE,
    "/* What it does. */\n/* Copyright 2020 A */\n" + CODE,
    "package a\n/* Copyright 2020 A */\nval x = 1\n",
    CODE + "// Copyright 2020 A\n",
    "/* Copyright */ package a\n",
    "/* Copyright 2020\n */ package a\n",
    "/* Copyright 2020 without an end\n" + CODE,
    "val s = \"/* Copyright 2020 */\"\n",
    "\"// Copyright\"\n",
    "@file:JvmName(\"Copyright\")\n" + CODE,
    "#!/usr/bin/env kotlin\n" + CODE,
    "#!/usr/bin/copyright\n" + CODE,
    "import copyright.A\n",
    "/* MIT invented it; see the licence_plate table */\n" + CODE,
    "// (c) the third case\n" + CODE,
])
def test_everything_else_stays(source: str) -> None:
    """Code or documentation is deleted as if it were a licence header."""
    assert strip_copyright(source) == source


@pytest.mark.parametrize(("source", "expected"), [
    ("#!/usr/bin/env kotlin\n/* Copyright 2020 A */\n" + CODE, "#!/usr/bin/env kotlin\n" + CODE),
    ("/* Copyright 2020 A */\n/** Says hello. */\n" + CODE, "/** Says hello. */\n" + CODE),
    ("// Copyright 2020 A\n\n// What it does\n" + CODE, "// What it does\n" + CODE),
    ("/* Copyright 2020 A */\n" + CODE + "// Copyright 2020 B\n", CODE + "// Copyright 2020 B\n"),
    ("// SPDX-License-Identifier: MIT\n@file:Suppress(\"a\")\n", "@file:Suppress(\"a\")\n"),
    ("/* Copyright 2020 A */\nval s = \"*/\"\n", "val s = \"*/\"\n"),
    ("/* Copyright 2020 A */", ""),
    ("\ufeff" + CODE, CODE),
])
def test_what_surrounds_a_copyright_comment_stays(source: str, expected: str) -> None:
    """A shebang, the documentation or a later comment goes with the licence header."""
    assert strip_copyright(source) == expected


@given(st.text(alphabet="/*# \ncopyright©x!\ufeff", max_size=60))
def test_only_the_top_is_ever_removed(source: str) -> None:
    """Cleaning changes the code below the header."""
    cleaned = strip_copyright(source)
    text = source.removeprefix("\ufeff")
    shebang = text[:text.index("\n") + 1] if text.startswith("#!") and "\n" in text else ""
    assert cleaned.startswith(shebang)
    assert text.endswith(cleaned.removeprefix(shebang))


@pytest.mark.parametrize(("text", "generated", "short", "reason"), [
    (CODE, False, False, None),
    (" \n", False, False, "empty after cleaning"),
    (" \n", True, True, "empty after cleaning"),
    ("package a\n", False, False, "fewer than two lines"),
    ("\n\npackage a\n\n\n", False, False, "fewer than two lines"),
    ("package a\n", False, True, None),
    ("// Generated. DO NOT EDIT\n" + CODE, False, False, "generated by a machine"),
    ("// @generated by x\n" + CODE, False, False, "generated by a machine"),
    ("// @generated by x\n" + CODE, True, False, None),
    ("// @generatedBy x\n" + CODE, False, False, None),
    (CODE + "\n" * 30 + "// do not edit\n", False, False, None),
])
def test_drop_reason(text: str, generated: bool, short: bool, reason: str | None) -> None:
    """A good file is dropped, or a useless one is kept."""
    assert drop_reason(text, keep_generated=generated, keep_short=short) == reason


# ---------------------------------------------------------------------------------------------------------------
# Cutting
# ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def offsets_of(tokenizer_folder: Path) -> Callable[[str], np.ndarray]:
    """Return a function that gives the (tokens, 2) character offsets of a text's tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return lambda text: np.array(tokenizer.encode(text, add_special_tokens=False).offsets, dtype=np.int64).reshape(-1, 2)


TEXTS = st.one_of(st.text(max_size=120), st.text(alphabet=" \n\t.({ab1é\U0001f600", max_size=200),
                  st.lists(st.sampled_from(["fun f() {\n", "    val a = 1\n", "}\n", "\r\n", "\u3000", "𝔘", "👨‍👩‍👧", "<|endoftext|>"]),
                           max_size=40).map("".join))


def split_into_chunks(text: str, offsets: np.ndarray, chunk_tokens: int) -> list[str]:
    """Return `text` cut into consecutive chunks of about `chunk_tokens` tokens; joined they are `text` again."""
    position, ranks = find_cuts(text, offsets)
    windows = cut_windows(ranks, chunk_tokens, stride_tokens=0)
    bounds = [0, *(cut for _, cut, _ in windows), *(end for _, _, end in windows[-1:]), len(position) - 1]
    places = sorted({int(position[i]) for i in bounds})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(text=TEXTS, chunk=st.integers(1, 40))
@settings(deadline=None, max_examples=150)
def test_chunks_joined_are_the_text(offsets_of: Callable[[str], np.ndarray], text: str, chunk: int) -> None:
    """Cutting loses or changes characters: prompt + completion reads `val a = 1val b`."""
    offsets = offsets_of(text)
    if not len(offsets):
        assert not text
        return
    chunks = split_into_chunks(text, offsets, chunk)
    assert "".join(chunks) == text
    assert all(chunks)


@given(text=TEXTS)
@settings(deadline=None, max_examples=200)
def test_offsets_from_lengths_are_those_of_the_library(tokenizer_folder: Path, text: str) -> None:
    """The fast way to offsets cuts elsewhere than the tokenizer's own offsets, or within a character."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    lengths = preprocess_data.byte_lengths(tokenizer)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if not encoding.ids:
        return
    fast = preprocess_data.offsets_from_lengths(text, lengths[np.array(encoding.ids)])
    slow = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    (position, ranks), (expected_position, expected_ranks) = find_cuts(text, fast), find_cuts(text, slow)
    assert ranks == expected_ranks
    possible = np.frombuffer(ranks, dtype=np.uint8) > 0
    assert (position[possible] == expected_position[possible]).all()


def test_tokens_of_another_text_are_noticed() -> None:
    """A tokenizer that normalizes its input gets offsets that do not fit the text."""
    assert preprocess_data.offsets_from_lengths("abc", np.array([1, 1])) is None


@given(text=TEXTS, chunk=st.integers(1, 40), stride=st.integers(0, 20))
@settings(deadline=None, max_examples=150)
def test_windows_of_a_text_hold_text(offsets_of: Callable[[str], np.ndarray], text: str, chunk: int, stride: int) -> None:
    """An example has an empty prompt or completion."""
    offsets = offsets_of(text)
    if not len(offsets):
        return
    position, ranks = find_cuts(text, offsets)
    for start, cut, end in position[np.array(cut_windows(ranks, chunk, stride), dtype=np.int64).reshape(-1, 3)].tolist():
        assert 0 <= start < cut < end <= len(text)


@st.composite
def boundaries(draw: st.DrawFn) -> bytes:
    """Draw the ranks of boundaries; in some draws most places are within words, or no places at all."""
    count = draw(st.integers(1, 150))
    kinds = draw(st.lists(st.integers(0, LINE), min_size=1, max_size=8))
    return bytes([LINE, *draw(st.lists(st.sampled_from(kinds), min_size=count - 1, max_size=count - 1)), LINE])


@given(ranks=boundaries(), chunk=st.integers(1, 60), stride=st.integers(1, 60))
@settings(deadline=None, max_examples=300)
def test_cut_windows_invariants(ranks: bytes, chunk: int, stride: int) -> None:
    """A chunk is longer than --chunk_tokens, a completion is evaluated twice or has a hole behind it, a cut splits a character."""
    count = len(ranks) - 1
    for windows in (cut_windows(ranks, chunk, 0), cut_windows(ranks, chunk, stride)):
        assert all(0 <= start < cut < end <= count for start, cut, end in windows)
        assert all(ranks[place] for window in windows for place in window)
        assert [w[0] for w in windows] == sorted({w[0] for w in windows})
        for window in windows:
            for low, high in itertools.pairwise(window):
                assert high - low <= chunk or not any(ranks[low + 1:high])  # one character of more tokens than that
    windows = cut_windows(ranks, chunk, 0)
    for before, after in itertools.pairwise(windows):
        assert after[0] == before[1]
        assert after[1] == before[2]  # the next completion begins where this one ends
    if windows and all(ranks):
        assert windows[-1][2] == count  # no rest is left that no completion holds


def test_every_place_of_a_file_is_in_a_completion_of_train() -> None:
    """With a stride smaller than a chunk, the end of a file is never trained on."""
    for count in range(20, 700):
        assert cut_windows(bytes([LINE] * (count + 1)), 100, 35)[-1][2] == count


@pytest.mark.parametrize(("ranks_near_the_end", "expected"), [
    ({100: WITHIN_WORD}, 100),
    ({99: OTHER_PUNCTUATION}, 99),
    ({99: OTHER_PUNCTUATION, 95: WHITE_SPACE}, 95),
    ({99: WHITE_SPACE, 90: STATEMENT, 85: STATEMENT}, 90),
    ({99: STATEMENT, 98: WHITE_SPACE, 82: LINE}, 82),
    ({99: STATEMENT, 80: LINE}, 99),  # not near the end
    ({79: STATEMENT, 60: LINE, 40: LINE}, 60),  # nothing near the end: the second half
    ({40: LINE}, 100),  # nothing in the second half: between two characters
    ({100: 0, 99: 0, 98: 0}, 97),  # within a character
])
def test_the_order_of_places_to_cut(ranks_near_the_end: dict[int, int], expected: int) -> None:
    """A chunk ends in the middle of a statement although a line ends close by, or is cut far too short for the sake of one."""
    ranks = bytearray([WITHIN_WORD] * 301)
    for place, rank in ranks_near_the_end.items():
        ranks[place] = rank
    assert cut_windows(bytes(ranks), 100, 0)[0][:2] == (0, expected)


@pytest.mark.parametrize(("text", "ranks"), [
    ("a;b", [WITHIN_WORD, STATEMENT]),
    ("a.b", [WITHIN_WORD, OTHER_PUNCTUATION]),
    ("a b", [WHITE_SPACE, WITHIN_WORD]),
    ("a)\n b", [WITHIN_WORD, LINE, LINE, WITHIN_WORD]),
    ("a{ b", [WITHIN_WORD, STATEMENT, WITHIN_WORD]),
    ("a \nb", [WHITE_SPACE, WITHIN_WORD, LINE]),
    ("$_é", [WITHIN_WORD, WITHIN_WORD]),
])
def test_ranks_of_places(text: str, ranks: list[int]) -> None:
    """A place to cut is taken for another kind."""
    offsets = np.array([(i, i + 1) for i in range(len(text))])
    assert list(find_cuts(text, offsets)[1]) == [LINE, *ranks, LINE]


@pytest.mark.parametrize(("count", "stride", "expected"), [
    (1000, 35, [(s, s + 100, s + 200) for s in range(0, 801, 35)]),
    (400, 0, [(0, 100, 200), (100, 200, 300), (200, 300, 400)]),
    (50, 0, [(0, 25, 50)]),
    (19, 0, []),
    (203, 0, [(0, 100, 151), (100, 151, 203)]),  # no chunk of 103, and no completion of 3
    (105, 0, [(0, 52, 105)]),
])
def test_cut_windows_where_every_place_is_good(count: int, stride: int, expected: list[tuple[int, int, int]]) -> None:
    """Chunks are longer or shorter than --chunk_tokens, or windows slide by another step than --stride_tokens."""
    windows = cut_windows(bytes([LINE] * (count + 1)), 100, stride)
    full = [window for window in windows if window[2] - window[1] >= 100]
    assert full == expected or windows == expected


def test_chunks_of_code_end_at_the_ends_of_lines(offsets_of: Callable[[str], np.ndarray]) -> None:
    """Chunks end in the middle of a line of code, or hold more tokens than --chunk_tokens."""
    text = "val s = f(a)\n" * 60
    chunks = split_into_chunks(text, offsets_of(text), 40)
    assert len(chunks) > 10
    assert all(chunk.startswith("val") and chunk.endswith("\n") for chunk in chunks)
    assert all(len(offsets_of(chunk)) <= 40 for chunk in chunks)


# ---------------------------------------------------------------------------------------------------------------
# The whole stage
# ---------------------------------------------------------------------------------------------------------------

class InlinePool:
    """A pool whose one worker is this process: starting another takes a second."""
    _processes = None

    def __init__(self, workers: int, mp_context: Any, initializer: Callable, initargs: tuple):
        initializer(*initargs)

    def submit(self, function: Callable, *arguments: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **options: Any) -> None:
        pass


class Prepared:
    """What a run wrote."""

    def __init__(self, folder: Path):
        import datasets

        data = datasets.load_from_disk(str(folder))
        self.features = {split: data[split].features for split in data}
        self.rows = {split: [(row["prompt"], row["completion"], row["source_line"]) for row in data[split]] for split in data}
        self.examples = {split: [row[:2] for row in rows] for split, rows in self.rows.items()}
        self.lines = {split: {row[2] for row in rows} for split, rows in self.rows.items()}
        self.manifest = json.loads((folder / "manifest.json").read_bytes())
        self.counts = self.manifest["counts"]


def write_raw(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"file_text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def prepare(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prepared]:
    """Return a function that runs the stage on texts (or on a raw file that is there already) in this process."""
    monkeypatch.setattr(preprocess_data, "ProcessPoolExecutor", InlinePool)
    monkeypatch.setattr(sys, "argv", ["preprocess_data.py"])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def run(texts: list[str] | None, *options: object, output: str = "data") -> Prepared:
        if texts is not None:
            write_raw(tmp_path / "raw.jsonl", texts)
        try:
            preprocess_data.main(["--input_file", str(tmp_path / "raw.jsonl"), "--output_dir", str(tmp_path / output),
                                  "--model_name_or_path", str(tokenizer_folder), *FRACTIONS, *map(str, options)])
        finally:
            assert not list(tmp_path.glob(".*pipeline-*"))
        return Prepared(tmp_path / output)
    return run


@pytest.fixture
def failure(prepare: Callable[..., Prepared], capfd: pytest.CaptureFixture, error_line: Callable[[str], str]) -> Callable[..., str]:
    """Return a function that expects the stage to fail and returns the line that says why."""
    def run(texts: list[str] | None, *options: object, output: str = "data") -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            prepare(texts, *options, output=output)
        assert stop.value.code == 1
        return error_line(capfd.readouterr().err)
    return run


@pytest.fixture(scope="session")
def texts(kotlin_file: Callable[[int], str]) -> list[str]:
    return [kotlin_file(number) for number in range(40)]


def test_the_data_set(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """The next stage cannot read the data set, or its examples are not parts of the files they name."""
    import datasets

    data = prepare(texts)
    assert list(data.rows) == list(SPLITS)
    expected = {"prompt": datasets.Value("string"), "completion": datasets.Value("string"), "source_line": datasets.Value("int64")}
    assert all(features == expected for features in data.features.values())
    for split, rows in data.rows.items():
        assert rows
        for prompt, completion, line in rows:
            assert prompt + completion in texts[line - 1]
        assert data.counts[f"examples in {split}"] == len(rows)
        assert data.counts[f"files in {split}"] == len(data.lines[split])
    assert data.counts["files read"] == 40
    assert set(data.manifest["inputs"]) == {"raw.jsonl"}


def test_no_file_is_in_two_splits(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """Test completions stand verbatim in training prompts: every measured number is too good."""
    data = prepare(texts)
    assert sum(map(len, data.lines.values())) == len(set().union(*data.lines.values())) == 40


def test_train_windows_slide_and_evaluation_windows_do_not_overlap(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """Positions of a test file count several times, or train loses examples."""
    data = prepare(texts)
    for split in ("validation", "test"):
        for line in data.lines[split]:
            completions = [completion for _, completion, number in data.rows[split] if number == line]
            prompts = [prompt for prompt, _, number in data.rows[split] if number == line]
            assert "".join([prompts[0], *completions]) == texts[line - 1]
            assert prompts[1:] == completions[:-1]
    per_file = {split: len(data.rows[split]) / len(data.lines[split]) for split in SPLITS}
    assert per_file["train"] > 2 * per_file["test"]


def test_splits_do_not_depend_on_the_order_or_the_run(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """Sorting the input differently moves test files into train."""
    first = prepare(texts)
    again = prepare(texts, output="again")
    assert again.rows == first.rows
    assert again.manifest["data_hash"] == first.manifest["data_hash"]
    shuffled = random.Random(1).sample(texts, len(texts))
    other = prepare(shuffled, output="other")
    for split in SPLITS:
        assert sorted(other.examples[split]) == sorted(first.examples[split])
    assert other.rows != first.rows


def test_another_seed_gives_other_splits(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """--seed does nothing."""
    assert prepare(texts).lines != prepare(texts, "--seed", 1, output="other").lines


def test_adding_a_file_moves_no_other(prepare: Callable[..., Prepared], texts: list[str], kotlin_file: Callable[[int], str]) -> None:
    """A larger corpus trains on what was the test set of the smaller one."""
    before = prepare(texts)
    after = prepare([kotlin_file(500), *texts], output="after")
    for split in SPLITS:
        assert {line - 1 for line in after.lines[split]} - {0} == before.lines[split]


@given(st.binary(min_size=32, max_size=32), st.integers(0, 5), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_test_set_holds_the_smaller(digest: bytes, seed: int, validation: float, test: float) -> None:
    """Changing --test_fraction shuffles the whole test set."""
    if choose_split(digest, seed, validation, test) == "test":
        assert choose_split(digest, seed, validation, test + 0.1) == "test"


def test_exact_duplicates_are_dropped(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """Copies of one file weigh more than other files, or are on both sides of a split."""
    header = "/* Copyright 2020 A */\n\n"
    data = prepare([*texts, header + texts[3], texts[5]])
    assert data.counts["dropped, exact duplicate"] == 2
    assert set().union(*data.lines.values()) == set(range(1, 41))


def near_duplicates(text: str, number: int) -> list[str]:
    """Return variants of a file that differ from it in one name."""
    return [text.replace("return", f"return /* {i} */", 1) for i in range(number)]


def test_near_duplicates_are_dropped(prepare: Callable[..., Prepared], texts: list[str], kotlin_file: Callable[[int], str]) -> None:
    """Variants of one file are on both sides of a split."""
    family = near_duplicates(kotlin_file(77), 8)
    data = prepare([*texts, *family])
    assert data.counts["dropped, near-duplicate"] == 7
    assert len(set().union(*data.lines.values()) - set(range(1, 41))) == 1


def test_kept_near_duplicates_never_straddle(prepare: Callable[..., Prepared], texts: list[str], kotlin_file: Callable[[int], str]) -> None:
    """--near_duplicates keep puts variants of one file into train and test."""
    families = [near_duplicates(kotlin_file(number), 6) for number in range(70, 76)]
    data = prepare([*texts, *(text for family in families for text in [*family, family[0]])], "--near_duplicates", "keep")
    assert data.counts["dropped, exact duplicate"] == 6
    homes = []
    for number in range(6):
        lines = set(range(41 + 7 * number, 48 + 7 * number))
        holders = [split for split in SPLITS if data.lines[split] & lines]
        assert len(holders) == 1, f"family {number} is in {holders}"
        assert len(data.lines[holders[0]] & lines) == 6
        homes += holders
    assert len(set(homes)) > 1  # else this test would show nothing


def test_filters_are_counted_and_can_be_switched_off(prepare: Callable[..., Prepared], texts: list[str],
                                                     kotlin_file: Callable[[int], str]) -> None:
    """Files vanish without a word, or a --keep_ switch does nothing."""
    odd = ["/* Copyright 2020 A */\n", "val a = listOf(" + "1, " * 60 + ")\n", "// @generated\n" + kotlin_file(90), "a\nb\n",
           "/* Copyright 2020 A */\n" + kotlin_file(91)]
    data = prepare([*texts, *odd])
    found = {name: number for name, number in data.counts.items() if name.startswith("dropped")}
    assert found == {"dropped, empty after cleaning": 1, "dropped, fewer than two lines": 1, "dropped, generated by a machine": 1,
                     "dropped, too short for an example": 1}
    assert not any("Copyright" in prompt for rows in data.examples.values() for prompt, _ in rows)
    kept = prepare([*texts, *odd], "--keep_short", "--keep_generated", "--keep_copyright", output="kept")
    assert {42, 43} <= set().union(*kept.lines.values())
    assert any(prompt.startswith("/* Copyright") for rows in kept.examples.values() for prompt, _ in rows)


def test_examples_with_very_large_values_are_skipped(prepare: Callable[..., Prepared], texts: list[str],
                                                     kotlin_file: Callable[[int], str]) -> None:
    """Hundreds of digits reach the model, or the whole file is lost for one of them."""
    values = ["9" * 40, "x" * 200, "8" * 39 + "L", "y" * 199]
    files = [kotlin_file(80 + i, 30) + f"\nval big = \n {value}\n\n" + kotlin_file(90 + i, 30) for i, value in enumerate(values)]
    options = ("--chunk_tokens", 300, "--stride_tokens", 100)
    data, everything = prepare([*texts, *files], *options), prepare([*texts, *files], *options, "--keep_large_values", output="all")

    def holding(result: Prepared, value: str) -> bool:
        return any(value in prompt + completion for rows in result.examples.values() for prompt, completion in rows)
    assert [holding(data, value) for value in values] == [False, False, True, True]
    assert all(holding(everything, value) for value in values)
    assert data.counts["examples skipped, very large value"] > 0
    assert everything.counts["examples skipped, very large value"] == 0
    assert {41, 42, 43, 44} <= set().union(*data.lines.values())  # the rest of these files serves


def test_limit(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """--limit reads more than it says."""
    data = prepare(texts, "--limit", 30)
    assert data.counts["files read"] == 30
    assert max(set().union(*data.lines.values())) <= 30


def test_special_tokens_in_the_source_are_text(prepare: Callable[..., Prepared], texts: list[str],
                                               kotlin_file: Callable[[int], str]) -> None:
    """`<|endoftext|>` in a source file disappears."""
    marked = kotlin_file(95).replace("return", "<|endoftext|>")
    data = prepare([*texts, marked])
    split = next(split for split in SPLITS if 41 in data.lines[split])
    rows = [row for row in data.rows[split] if row[2] == 41]
    assert all(prompt + completion in marked for prompt, completion, _ in rows)
    assert any("<|endoftext|>" in prompt + completion for prompt, completion, _ in rows)


@pytest.mark.parametrize(("line", "message"), [
    ('{"file_text": "fun a', "not valid JSON"),
    ("", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ('["file_text"]', "not a JSON object"),
    ('"text"', "not a JSON object"),
    ('{"text": "fun a"}', "no field 'file_text'; it has text"),
    ("{}", "no field 'file_text'; it has no fields"),
    ('{"file_text": 1}', "'file_text' is not of type str"),
    ('{"file_text": null}', "'file_text' is not of type str"),
    ('{"file_text": "\\ud800"}', "'file_text' holds a lone surrogate"),
])
def test_a_broken_line_is_named_with_its_number(line: str, message: str, tmp_path: Path, texts: list[str],
                                                failure: Callable[..., str]) -> None:
    """One damaged line in 50,000 cannot be found."""
    good = [json.dumps({"file_text": text}) for text in texts[:2]]
    (tmp_path / "raw.jsonl").write_text("\n".join([*good * 35, line, *good]) + "\n")
    said = failure(None)
    assert f"{tmp_path / 'raw.jsonl'}, line 71: {message}" in said
    assert not (tmp_path / "data").exists()


def test_a_broken_line_is_named_by_worker_processes_too(tmp_path: Path, tokenizer_folder: Path, run_script: Callable,
                                                        error_line: Callable[[str], str]) -> None:
    """An error in a worker process shows its traceback, or the stage hangs."""
    (tmp_path / "raw.jsonl").write_text(json.dumps({"file_text": CODE}) + "\n{\n")
    result = run_script("preprocess_data.py", "--input_file", "raw.jsonl", "--output_dir", "data", "--num_proc", 1,
                        "--model_name_or_path", tokenizer_folder)
    assert result.returncode == 1
    assert "raw.jsonl, line 2: not valid JSON" in error_line(result.stderr)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("content", "options", "message"), [
    ("", (), "no file can serve (it is empty)"),
    (None, (), "no such file; run parse_data.py first"),
    (json.dumps({"file_text": "package a\n"}) + "\n", (), "no file can serve (1 dropped, fewer than two lines"),
    (json.dumps({"file_text": CODE * 9}) + "\n", (), "too small for three splits"),
    (json.dumps({"file_text": CODE * 9}) + "\n", ("--test_fraction", "0.9"), "leave nothing to train on"),
])
def test_input_that_cannot_serve_leaves_the_previous_output(content: str | None, options: tuple, message: str, tmp_path: Path,
                                                            texts: list[str], prepare: Callable[..., Prepared],
                                                            failure: Callable[..., str]) -> None:
    """A failed run costs the user the last good data set, or shows a traceback."""
    prepare(texts)
    before = {p: p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file()}
    (tmp_path / "raw.jsonl").unlink() if content is None else (tmp_path / "raw.jsonl").write_text(content)
    assert message in failure(None, *options)
    assert {p: p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file()} == before


def test_a_second_run_replaces_the_first(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """The user has to delete the old data set by hand, or gets a mixture."""
    prepare(texts)
    assert prepare(texts[:30]).counts["files read"] == 30


@pytest.mark.parametrize("names", [("notes.txt",), ("manifest.json", "background.js"), (".hidden",)])
def test_a_folder_of_other_files_is_not_replaced(names: tuple[str, ...], tmp_path: Path, texts: list[str],
                                                 failure: Callable[..., str]) -> None:
    """--output_dir deletes the user's files; many programs have a manifest.json of their own."""
    (tmp_path / "mine").mkdir()
    for name in names:
        (tmp_path / "mine" / name).write_text('{"name": "mine"}')
    assert "holds files that this pipeline did not write" in failure(texts, output="mine")
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == sorted(names)


def test_a_changed_raw_file_is_noticed(tmp_path: Path, texts: list[str], failure: Callable[..., str]) -> None:
    """A raw file that a copy cut short is used as if it were whole."""
    raw = write_raw(tmp_path / "raw.jsonl", texts)
    (tmp_path / "raw.manifest.json").write_text(json.dumps({"outputs": {"raw.jsonl": "0" * 64}}))
    assert f"{raw}: has changed since it was written" in failure(None)


@pytest.mark.parametrize(("content", "message"), [("{bad", "tokenizer.json cannot be read"), ("{}", "tokenizer.json cannot be read"),
                                                  (None, "holds neither config.json nor adapter_config.json")])
def test_a_damaged_tokenizer(content: str | None, message: str, tmp_path: Path, texts: list[str], failure: Callable[..., str]) -> None:
    """A download that was cut short ends in the traceback of a broken process pool."""
    (tmp_path / "model").mkdir()
    if content:
        (tmp_path / "model" / "tokenizer.json").write_text(content)
    assert message in failure(texts, "--model_name_or_path", tmp_path / "model")


@pytest.mark.parametrize("name", ["./no/model", "/no/such/model", "../nothing"])
def test_a_local_model_that_does_not_exist(name: str, texts: list[str], failure: Callable[..., str]) -> None:
    """A typing error in a path is looked up on the hub."""
    assert f"model {name}: no such folder" in failure(texts, "--model_name_or_path", name)


def test_the_data_does_not_depend_on_the_number_of_processes(tmp_path: Path, tokenizer_folder: Path, kotlin_file: Callable[[int], str],
                                                             run_script: Callable) -> None:
    """Results differ between machines."""
    write_raw(tmp_path / "raw.jsonl", [kotlin_file(number) for number in range(80)])  # two batches
    found = []
    for number in (1, 2):
        result = run_script("preprocess_data.py", "--input_file", "raw.jsonl", "--output_dir", f"data{number}", "--num_proc", number,
                            "--model_name_or_path", tokenizer_folder, *FRACTIONS)
        assert result.returncode == 0, result.stderr
        assert len(result.stderr.splitlines()) == 1  # the settings; no bar where nobody looks
        found.append(Prepared(tmp_path / f"data{number}"))
    assert found[0].rows == found[1].rows
    assert found[0].manifest["data_hash"] == found[1].manifest["data_hash"]


@pytest.fixture
def running(tmp_path: Path, tokenizer_folder: Path, kotlin_file: Callable[[int], str]) -> Iterator[subprocess.Popen]:
    """A run that has begun to clean a large file."""
    line = json.dumps({"file_text": kotlin_file(1, 40)}) + "\n"
    (tmp_path / "raw.jsonl").write_text(line * 20_000)
    process = subprocess.Popen([sys.executable, ROOT / "preprocess_data.py", "--input_file", "raw.jsonl", "--output_dir", "data",
                                "--model_name_or_path", tokenizer_folder, "--num_proc", "1"], cwd=tmp_path, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".data.pipeline-tmp-*/scratch/spool")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(process.pid)
    yield process
    process.kill()
    process.wait()
    process.stderr.close()
    for pid in workers:  # none is left unless a test failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while alive := [pid for pid in processes if Path(f"/proc/{pid}/stat").exists()
                    and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_leaves_nothing(number: int, code: int, running: subprocess.Popen, tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM leaves gigabytes of temporary files or processes that go on."""
    workers = children(running.pid)
    assert workers
    running.send_signal(number)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == code, stderr
    assert len(stderr.splitlines()) == 2, stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [".data.lock", "raw.jsonl"]
    wait_until_gone(workers)


def test_a_kill_leaves_no_processes(running: subprocess.Popen) -> None:
    """After a kill -9, for instance for want of memory, the worker processes hold theirs for ever."""
    workers = children(running.pid)
    assert workers
    running.kill()
    wait_until_gone(workers)


# ---------------------------------------------------------------------------------------------------------------
# The hub
# ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", autouse=True)
def unreachable_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen]:
    """A run that asks a hub which nobody answers for; it starts before all tests, since its retries take a while."""
    folder = tmp_path_factory.mktemp("unreachable")
    write_raw(folder / "raw.jsonl", [CODE])
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "hub"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    process = subprocess.Popen([sys.executable, ROOT / "preprocess_data.py", "--input_file", "raw.jsonl", "--output_dir", "data",
                                "--model_name_or_path", "nobody/nothing"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_hub_that_cannot_be_reached(unreachable_hub: subprocess.Popen) -> None:
    """Without a network, the user gets a page of tracebacks, or waits for minutes."""
    _, stderr = unreachable_hub.communicate(timeout=60)
    assert unreachable_hub.returncode == 1
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert last == ("preprocess_data.py: error: model nobody/nothing: the hub cannot be reached and the cache does not hold it; "
                    "check the network, or name a local folder")


@pytest.mark.parametrize("odd", [
    "val a = '" + "x" * 500_000 + "'\nval b = 1\n", "x" * 500_000, "a\n" * 200_000, "\n" * 200_000 + "val a = 1\nval b = 2\n",
    "/*" + "*" * 200_000 + "\nval a = 1\n", "// Copyright 2020 A\n" * 20_000 + "val a = 1\nval b = 2\n", "9" * 300_000 + "\nval b = 1\n",
    "\U0001f600" * 100_000 + "\nval b = 1\n",
], ids=["long literal", "one line", "many lines", "blank lines", "open comment", "long header", "digits", "emoji"])
def test_enormous_files_of_odd_shape(prepare: Callable, kotlin_file: Callable[[int], str], odd: str) -> None:
    """One strange file stops the run, takes hours, or gets into the examples with its enormous values."""
    texts = [kotlin_file(number) for number in range(20)]
    prepared = prepare([odd, *texts])
    assert prepared.counts["files read"] == 21
    for split in prepared.examples:
        assert all(not preprocess_data.LARGE_VALUE.search(prompt + completion) for prompt, completion in prepared.examples[split])


@given(texts=st.lists(TEXTS, max_size=4))
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_any_text_goes_through_the_workers(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """A file of arbitrary Unicode breaks a worker process, or its examples are not pieces of it."""
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    preprocess_data.start_worker(preprocess_data.tokenizer_json(str(tokenizer_folder)), {
        "keep_copyright": True, "keep_generated": True, "keep_short": True, "chunk_tokens": 10, "stride_tokens": 3})
    lines = [json.dumps({"file_text": text, "extra": 1}).encode() for text in texts]
    files = preprocess_data.clean_files(path, 1, lines)
    assert [file.source_line for file in files] == list(range(1, len(texts) + 1))
    for file, text in zip(files, texts, strict=True):
        assert file.reason or file.text == text
        for windows in (file.train_windows, file.eval_windows) if not file.reason else ():
            assert all(0 <= start < cut < end <= len(text) for start, cut, end in windows[:, :3].tolist())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["1" * 39, "2" * 40, "a" * 199, "b" * 200, "x", "1", " ", "\n", "\u2003", "\x1c", "é"]),
                max_size=12).map("".join))
def test_the_quick_look_for_large_values_finds_what_the_pattern_finds(text: str) -> None:
    """A file with a value of hundreds of characters passes as one without."""
    assert preprocess_data.has_large_value(text) == (preprocess_data.LARGE_VALUE.search(text) is not None)


def test_signature_is_the_library_s_own_of_the_same_shingles(tokenizer_folder: Path) -> None:
    """The short cut by which a block of hashes reaches datasketch changes what it computes."""
    from datasketch import MinHash

    preprocess_data.start_worker(preprocess_data.tokenizer_json(str(tokenizer_folder)), {})
    token_ids = np.random.default_rng(0).integers(0, 400, 3000).astype(np.uint16)
    sketch = MinHash(preprocess_data.PERMUTATIONS, seed=preprocess_data.MINHASH_SEED, hashfunc=int)
    hashes = preprocess_data.ngram_hashes(token_ids, preprocess_data.NGRAM)
    for shingle in set((hashes >> np.uint64(32)).tolist()):
        sketch.update(shingle)
    assert preprocess_data.minhash_signature(token_ids).tolist() == sketch.hashvalues.tolist()
