"""pipeline/methods/finding.py and method_files.py: which methods a code base has, and which are kept."""
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from preparation_runs import Prepared

from pipeline.data.syntax import find_grammar
from pipeline.methods.finding import ERRORS, NO_GRAMMAR, PARSED, TOO_MUCH, FoundMethods, find_methods
from pipeline.methods.method_files import choose_methods, tell_left_out

FILE = '''package a

/** Sums é. */
@JvmStatic
private fun <T> List<T>.sum(x: Int = 3): Int where T : Any {
    val s = "${"}"} }"
    return x
}

fun expression() = 3
fun empty() {}
fun top() { g() }

/** One. */
/** Two. */
@Suppress("x") @kotlin.internal.Exact
@Deprecated
fun last() { return h() }

class A {
    // no documentation
    fun member() {
        fun inner() { return 1 }
        val f = fun(x: Int): Int { return x }
        object : B {
            override fun anonymous() { run { } }
        }
    }

    /* nor this */ abstract fun none()
    val p: Int get() { return 3 }
    constructor(x: Int) { y() }
}
'''


def found(text: str, extension: str = ".kt") -> list[tuple[str, str, str]]:
    """Return (documentation, signature, body) of a text's methods, of tokens of one character."""
    offsets = np.stack([np.arange(len(text)), np.arange(1, len(text) + 1)], axis=1)
    methods = find_methods(text, find_grammar(extension), offsets, np.arange(len(text)))
    assert len(methods.places) == len(methods.shingles)
    return [(text[first:start].rstrip(), text[start:opened], text[opened:end])
            for first, start, opened, end in methods.places.tolist()]


def test_the_methods_of_a_file() -> None:
    """A method is missed, has the comment of another, loses its annotations, or is no method."""
    assert found(FILE) == [
        ("/** Sums é. */", "@JvmStatic\nprivate fun <T> List<T>.sum(x: Int = 3): Int where T : Any {",
         '\n    val s = "${"}"} }"\n    return x\n}'),
        ("", "fun top() {", " g() }"),
        ("/** Two. */", '@Suppress("x") @kotlin.internal.Exact\n@Deprecated\nfun last() {', " return h() }"),
        ("", "fun member() {", FILE[FILE.index("member() {") + 10:FILE.index("\n\n    /* nor")]),
        ("", "fun inner() {", " return 1 }"), ("", "override fun anonymous() {", " run { } }")]


def test_the_methods_of_another_language() -> None:
    """A user of another language whose grammar is there has no methods."""
    text = "class A {\n  /** Doc. */\n  @Override public int f(int x) { return x; }\n  int g();\n}\n"
    assert found(text, ".java") == [("/** Doc. */", "@Override public int f(int x) {", " return x; }")]


@pytest.mark.parametrize(("body", "kept"), [(" }", False), ("a }", True), ("x" * 254 + " }", True),
                                            ("x" * 255 + " }", False)])
def test_the_length_of_a_body(body: str, kept: bool) -> None:
    """Methods of nothing, or of more than a model may write, are in the set."""
    assert bool(found(f"fun f() {{{body}\n")) == kept


@pytest.mark.parametrize(("text", "fate", "number"), [
    ("fun f() { g() }\n", PARSED, 1), ("fun f() { g() }\n\n)) }\n\nfun h() { g() }\n", ERRORS, 1),
    ("fun f() { g(\n\nfun h() { val }\n", ERRORS, 0), ("/*" * (1 << 19), TOO_MUCH, 0),
    ("{" * (1 << 19), TOO_MUCH, 0), ("fun f() { " * 5000, ERRORS, 0), ("}" * (1 << 20), ERRORS, 0)])
def test_files_that_do_not_parse(text: str, fate: str, number: int) -> None:
    """A broken file, or one of a megabyte on one line, ends the run, holds it up, or gives broken methods."""
    offsets = np.stack([np.arange(len(text)), np.arange(1, len(text) + 1)], axis=1)
    begun = time.process_time()
    methods = find_methods(text, find_grammar(".kt"), offsets, np.arange(len(text)))
    assert time.process_time() - begun < 30
    assert (methods.fate, len(methods.places)) == (fate, number)


def test_copies_of_a_method_are_kept_once_in_each_split() -> None:
    """A test asks the same thing twice, or a method that stands in train is dropped there."""
    rows = np.random.default_rng(0).integers(0, 2**32, size=(4, 100), dtype=np.uint32)
    rows.sort()
    near = rows[0].copy()
    near[10:20] += 1

    def file(*shingles: np.ndarray) -> FoundMethods:
        return FoundMethods(PARSED, np.zeros((len(shingles), 4), dtype=np.int64), shingles)

    files = [file(rows[0], rows[1], near), FoundMethods(NO_GRAMMAR), file(rows[2]), file(rows[0], rows[3])]
    counts: Counter = Counter()
    kept, numbers = choose_methods(iter(files), ["test", "train", None, "train"], counts)
    assert kept.tolist() == [True, True, False, True, True]
    assert numbers.tolist() == [3, 0, 0, 2]
    assert counts == {PARSED: 2, NO_GRAMMAR: 1, "methods dropped, near-copy in their split": 1,
                      "methods in test with a near-copy in train": 1}


def test_what_a_run_writes(prepare: Callable[..., Prepared], texts: list[str], tmp_path: Path) -> None:
    """The methods of a data set are not pieces of its files, or are in another split than these."""
    documented = [text.replace("\n\nfun", "\n\n/** What it does. */\nfun") for text in texts]
    data = prepare([*documented, texts[0] + "\n// more\n"], "--near_duplicates", "keep")
    methods = datasets.load_from_disk(str(tmp_path / "data" / "methods"))
    for split, rows in methods.items():
        files = {row["source_line"]: row["text"] for row in data.files[split]}
        assert len(rows) == data.counts[f"methods in {split}"]
        assert data.counts[f"methods in {split} with documentation"] == sum(map(bool, rows["docstring"]))
        for row in rows:
            text, head = files[row["source_line"]], row["signature"] + row["body"]
            assert text[row["start"]:row["start"] + len(head)] == head
            assert text[:row["start"]].rstrip().endswith(row["docstring"])
        lines = (tmp_path / "data" / "methods" / f"{split}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [
            {"signature": row["signature"], "docstring": row["docstring"], "body": row["body"],
             "id": f"{row['source_line']}:{row['start']}"} for row in rows]
    assert set(methods) == {"train", "validation", "test"}
    assert data.counts["methods dropped, near-copy in their split"] == 6  # the copy's
    assert sum(len(rows) for rows in methods.values()) == 40 * 6
    assert data.counts[PARSED] == 41
    assert "methods/test.jsonl" in data.manifest["outputs"]
    [row] = [line for line in (tmp_path / "data" / "report.md").read_text().splitlines()
             if line.startswith("| test |")]
    assert row.endswith(f"| {len(methods['test'])} |")


def test_a_run_without_methods(prepare: Callable[..., Prepared], texts: list[str], tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Without a grammar the stage fails or says nothing; or --no_methods parses all the same."""
    with_them = prepare(texts)
    capsys.readouterr()
    without = prepare(texts, "--no_methods")
    assert not (tmp_path / "data" / "methods").exists()
    assert without.rows == with_them.rows
    assert not any("method" in name or "parsed" in name for name in without.counts)
    assert "note" not in capsys.readouterr().err
    for module in ("preparation.workers", "methods.method_files"):
        monkeypatch.setattr(f"pipeline.{module}.find_grammar", lambda extension: None)
    assert prepare(texts).counts[NO_GRAMMAR] == 40
    assert not (tmp_path / "data" / "methods").exists()
    assert "the methods of 40 files are left out" in capsys.readouterr().err


def test_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A user does not learn why his language has no methods, or is told to install what is there, or a
    grammar that would bring him none."""
    monkeypatch.setattr("pipeline.methods.method_files.find_grammar", lambda extension: None)
    tell_left_out(Counter({".zig": 3, ".java": 2, ".kt": 0, "": 1}))
    zig, java, none = capsys.readouterr().err.splitlines()
    assert zig == ("note: the methods of 3 files are left out, of .zig: what a method is has been written "
                   "down for Kotlin and Java alone")
    assert java == ("note: no grammar for .java: the methods of 2 files are left out; "
                    "pip install tree-sitter-java brings it")
    assert "of no extension" in none
