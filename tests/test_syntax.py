"""pipeline/data/syntax.py: which grammar a file has, and that no file keeps the parser busy for long."""
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.data import syntax
from pipeline.data.syntax import extension_of, find_grammar, language_of, missing_grammar

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("path", "extension", "language"), [
    ("a/b.kt", ".kt", "kotlin"), ("build.gradle.kts", ".kts", "kotlin"), ("A.KT", ".kt", "kotlin"),
    ("A.java", ".java", "java"), ("x.cs", ".cs", "c_sharp"), ("a.zig", ".zig", "zig"),
    ("a.cobol", ".cobol", "cobol"), ("Token.SOL", ".sol", "solidity"),
    (None, ".kt", "kotlin"), ("Makefile", "", ""), ("a.b/c", "", ""), ("a.../x.../;rm", "", ""),
    ("q.a;b.c-d", ".c-d", "cd")])
def test_a_language_by_the_name_of_its_file(path: str | None, extension: str, language: str) -> None:
    """A file is parsed as another language, or a file's name makes something else be imported."""
    assert extension_of(path) == extension
    assert language_of(extension) == language


def test_another_language_comes_with_its_grammar() -> None:
    """A user who installs a grammar for his language has no methods all the same."""
    grammar = find_grammar(".java")
    assert grammar.name == "java"
    assert not grammar.parse(b"class A { int f() { return 1; } }").root_node.has_error
    assert find_grammar(".kt") is find_grammar(".kt")  # made once


def test_a_language_without_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a grammar, or with one that is too old, the stage ends in a traceback, and nobody says what to
    install."""
    assert find_grammar(".cobol") is None
    assert find_grammar("") is None
    assert missing_grammar(".cs", "its methods are left out") == (
        "no grammar for .cs: its methods are left out; pip install tree-sitter-c-sharp brings it")
    assert "files without an extension" in missing_grammar("", "x")

    def too_old() -> int:
        raise ValueError("Incompatible Language version 9")

    monkeypatch.setitem(sys.modules, "tree_sitter_old", SimpleNamespace(language=too_old, __spec__=object()))
    assert find_grammar(".old") is None
    monkeypatch.setitem(sys.modules, "tree_sitter_odd", SimpleNamespace(__spec__=object()))
    assert find_grammar(".odd") is None


def test_no_package_is_recommended_that_nobody_knows() -> None:
    """A user is told to install a package of a name that was made up from his files', which anybody may have
    published: the grammar for .sol is tree-sitter-solidity."""
    assert "tree-sitter-solidity" in missing_grammar(".sol", "x")
    assert "pip install" not in missing_grammar(".cobol", "x")


def test_the_tree_is_the_one_that_the_library_makes() -> None:
    """What the bound on the work needs (the text in pieces) changes what is found."""
    grammar = find_grammar(".kt")
    for text in ("", "\ufeff", "class {", "\0\0", "}" * 99,
                 "package ä\n\nfun f() { val s = \"é${g(\"}\")}\" }\n"):
        ours, theirs = grammar.parse(text.encode()), grammar.parser.parse(text.encode())
        assert str(ours.root_node) == str(theirs.root_node)


@pytest.mark.parametrize("text", ["val x = 1\n@", "class A {\n    val x = f()\n\n    @B", "val x: A\n@get:"])
def test_a_text_that_ends_in_an_annotation_is_parsed(text: str) -> None:
    """A file, or what a model wrote, that ends there keeps a run busy for ever, until it is killed."""
    code = ("import sys; from pipeline.data.syntax import find_grammar; "
            "print(find_grammar('.kt').parse(sys.argv[1].encode()).root_node.end_byte)")
    done = subprocess.run([sys.executable, "-c", code, text], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=60)
    assert int(done.stdout) >= len(text)


@pytest.mark.parametrize("piece", ["/*", "$", '"""', "{", "}", "a?"])
def test_no_text_takes_long(piece: str) -> None:
    """One file of a megabyte on one line, or with braces that never close, holds up the whole run: some of
    these take the parser minutes."""
    begun = time.process_time()
    tree = find_grammar(".kt").parse((piece * (1 << 20))[:1 << 20].encode())
    assert time.process_time() - begun < 30  # 5 s at most on an idle machine
    assert tree is None or tree.root_node.end_byte == (1 << 20) + 1  # and the line end
    # and the parser is none the worse for it
    assert not find_grammar(".kt").parse(b"fun f() { }").root_node.has_error


def test_what_is_too_much_is_counted_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file has methods on one machine and none on another."""
    text = b"fun f() { g(1) }\n" * 400
    assert find_grammar(".kt").parse(text) is not None
    monkeypatch.setattr(syntax, "MOST_STEPS", 10)
    assert find_grammar(".kt").parse(text) is None
    assert find_grammar(".kt").parse(text[:340]) is not None
    monkeypatch.setattr(syntax, "MOST_STEPS", 10_000)
    monkeypatch.setattr(syntax, "MOST_REREAD", 1000)
    assert find_grammar(".kt").parse(text) is None


def test_a_text_that_was_parsed_is_let_go() -> None:
    """What a worker has parsed stays in its memory, all of a code base in the end: the library keeps a
    reference to whatever it was given to read."""
    grammar = find_grammar(".kt")
    parsed = [(f'/* {i} ä */ fun f() {{ g("${{1}}") }}\n' * 3000).encode() for i in range(12)]
    grammar.parse(parsed[0])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for text in parsed:
            grammar.parse(bytes(bytearray(text)))  # of its own
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000  # one of them has 100,000
