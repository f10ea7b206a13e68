"""Grammars: source code parsed by tree-sitter, in bounded time, in every language whose grammar is installed.

A grammar is a package of its own, `tree_sitter_<language>`, and is found by a file's extension.  Where there
is none, everything that needs none works as before.
"""
import functools
import importlib
import importlib.util
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tree_sitter

KOTLIN = ".kt"  # what a file is taken for whose name nobody knows
# By extension, as grammars are named: those that have a package on PyPI (2026-11)
LANGUAGES = {".kt": "kotlin", ".kts": "kotlin", ".adb": "ada", ".ads": "ada", ".bash": "bash", ".sh": "bash",
             ".c": "c", ".h": "c", ".cs": "c_sharp", ".lisp": "commonlisp", ".cc": "cpp", ".cpp": "cpp",
             ".cxx": "cpp", ".hh": "cpp", ".hpp": "cpp", ".hxx": "cpp", ".cu": "cuda", ".cuh": "cuda",
             ".dart": "dart", ".ex": "elixir", ".exs": "elixir", ".f90": "fortran", ".f95": "fortran",
             ".fs": "fsharp", ".fsx": "fsharp", ".go": "go", ".gradle": "groovy", ".groovy": "groovy",
             ".hs": "haskell", ".hcl": "hcl", ".tf": "hcl", ".java": "java", ".cjs": "javascript",
             ".js": "javascript", ".jsx": "javascript", ".mjs": "javascript", ".jl": "julia", ".lua": "lua",
             ".nix": "nix", ".ml": "ocaml", ".odin": "odin", ".pas": "pascal", ".pl": "perl", ".pm": "perl",
             ".php": "php", ".ps1": "powershell", ".psm1": "powershell", ".py": "python", ".pyi": "python",
             ".rb": "ruby", ".rs": "rust", ".scala": "scala", ".sol": "solidity", ".sql": "sql",
             ".swift": "swift", ".sv": "systemverilog", ".ts": "typescript", ".vhd": "vhdl",
             ".vhdl": "vhdl", ".zig": "zig"}
# How languages are written whose names are not their grammars' with a capital
LABELS = {"c_sharp": "C#", "commonlisp": "Common Lisp", "cpp": "C++", "cuda": "CUDA", "fsharp": "F#",
          "hcl": "HCL", "javascript": "JavaScript", "ocaml": "OCaml", "php": "PHP",
          "powershell": "PowerShell", "sql": "SQL", "systemverilog": "SystemVerilog",
          "typescript": "TypeScript", "vhdl": "VHDL"}
# What a file may cost: some seconds.  Counted and not timed, so that what is parsed does not depend on the
# machine.  Of JetBrains/kotlin 1.3.31, the file that costs most takes 2,942 (476 kB) and 119 million.
MOST_STEPS = 4_000  # of the parser, in hundreds
MOST_REREAD = 1 << 27  # bytes: times that it goes back in a text, times the text's length
LARGEST_PIECE = 14  # of a text, as a power of two: bytes that the parser is given at a time


def with_line_end(source: bytes) -> bytes:
    """Return a text that ends with a line end, as the parser has to be given it.

    Kotlin's grammar in version 1.1.0 never comes back from a text whose last line is `@Name` behind an
    expression: it looks for white space beyond the end, where nothing can stop it.
    """
    return source if source.endswith(b"\n") else source + b"\n"


class Grammar:
    """A language's grammar, and a parser for it; one text at a time."""

    def __init__(self, name: str, language: tree_sitter.Language):
        self.name, self.language = name, language
        self.parser = tree_sitter.Parser(language)
        # The library (0.26) never lets go of what it is given to read.  These are the same for all texts:
        # else every text that was ever parsed would stay in memory.
        self.pieces = [bytearray(1 << power) for power in range(LARGEST_PIECE + 1)]

    def parse(self, source: bytes) -> tree_sitter.Tree | None:
        """Return the syntax tree of a text in UTF-8 (`with_line_end`); None where it would take more than
        MOST_STEPS or MOST_REREAD.

        The parser is one for all texts, broken ones too: what does not parse is in the tree as an error.
        """
        source = with_line_end(source)
        view, expected, jumps, steps = memoryview(source), 0, 0, 0

        def read(place: int, point: Any) -> bytearray | None:
            nonlocal expected, jumps
            jumps += place != expected
            if place >= len(source):
                return None
            piece = self.pieces[min((len(source) - place).bit_length() - 1, LARGEST_PIECE)]
            expected = place + len(piece)
            piece[:] = view[place:expected]
            return piece

        def too_much(place: int, error: bool) -> bool:
            nonlocal steps
            steps += 1
            return steps > MOST_STEPS or jumps * len(source) > MOST_REREAD

        try:
            return self.parser.parse(read, progress_callback=too_much)
        except ValueError:  # the parser's word for: it was stopped
            self.parser.reset()
            return None


def characters_of(source: bytes, places: np.ndarray) -> np.ndarray:
    """Return places in bytes of UTF-8 as places in characters."""
    if source.isascii():
        return places
    begins = (np.frombuffer(source, dtype=np.uint8) & 0xC0) != 0x80
    return np.concatenate([[0], np.cumsum(begins)])[places]


def extension_of(path: str | None) -> str:
    """Return a path's extension, e.g. `.kt`; Kotlin's where there is no path."""
    return PurePosixPath(path).suffix.lower() if path else KOTLIN


def language_of(extension: str) -> str:
    """Return the language of an extension as grammars are named; of one that is not in LANGUAGES, its own
    letters."""
    return LANGUAGES.get(extension, re.sub(r"[^a-z0-9_]", "", extension.lower()))


def label_of(extension: str) -> str:
    """Return the language of an extension as people write it."""
    name = language_of(extension)
    return LABELS.get(name, name.capitalize()) or "Code"


@functools.cache
def find_grammar(extension: str) -> Grammar | None:
    """Return the grammar for files with this extension, or None where none is installed that can be used."""
    name = language_of(extension)
    if not name or importlib.util.find_spec(f"tree_sitter_{name}") is None:
        return None
    module = importlib.import_module(f"tree_sitter_{name}")
    # a package of several languages names each
    make = getattr(module, "language", None) or getattr(module, f"language_{name}", None)
    try:
        return Grammar(name, tree_sitter.Language(make())) if make else None
    except ValueError:  # written for another version of the parser
        return None


def missing_grammar(extension: str, left_out: str) -> str:
    """Return a line for the user: that there is no grammar, what is left out, and how to have it.

    A package is named only where it is known to be a grammar: under another name anybody could have
    published anything.
    """
    how = "none is known on PyPI under the name tree-sitter-LANGUAGE"
    if extension in LANGUAGES:
        how = f"pip install tree-sitter-{LANGUAGES[extension].replace('_', '-')} brings it"
    return f"no grammar for {extension or 'files without an extension'}: {left_out}; {how}"
