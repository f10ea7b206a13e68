"""Make a Python benchmark in the format of CodeXGLUE method generation from the standard library.

Each line is {"signature", "docstring", "body", "id"}; line ends and indentation are <EOL>, <INDENT> and
<DEDENT>, comments are gone, and string and number literals outside the most frequent ones are emptied, as in
that data set.  It stands in for the real test set where there is no network; its scores are not comparable
with published ones, and the model may have seen the standard library.

Run:    python demo/make_python_benchmark.py OUTPUT_FILE
"""
import argparse
import ast
import io
import json
import os
import re
import sys
import sysconfig
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MODULES = ("argparse", "ast", "asyncio", "bdb", "calendar", "cmd", "codecs", "collections", "concurrent",
           "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "difflib", "dis",
           "doctest", "email", "enum", "fileinput", "filecmp", "fractions", "ftplib", "functools", "getopt",
           "gettext", "glob", "gzip", "heapq", "html", "http", "imaplib", "importlib", "inspect", "ipaddress",
           "json", "linecache", "locale", "logging", "lzma", "mailbox", "mimetypes", "multiprocessing",
           "netrc", "optparse", "pathlib", "pdb", "pickle", "pkgutil", "platform", "plistlib", "poplib",
           "pprint", "profile", "pyclbr", "queue", "random", "sched", "selectors", "shelve", "shlex",
           "shutil", "smtplib", "socket", "socketserver", "sqlite3", "statistics", "string", "subprocess",
           "symtable", "sysconfig", "tarfile", "telnetlib", "tempfile", "textwrap", "threading", "timeit",
           "tokenize", "traceback", "types", "typing", "unittest", "urllib", "uuid", "warnings", "wave",
           "weakref", "webbrowser", "wsgiref", "xml", "xmlrpc", "zipapp", "zipfile", "zoneinfo")
KEPT_STRINGS, KEPT_NUMBERS = 200, 30  # how many of the most frequent literals CodeXGLUE keeps
MAX_BODY_CHARACTERS = 700  # about the budget of 256 tokens
STRING_LITERAL = re.compile(r"(?P<prefix>[A-Za-z]*)(?P<quote>\"\"\"|'''|\"|')(?P<text>.*)(?P=quote)",
                            re.DOTALL)
# the text of a string may hold ">": its mark ends before the string's closing quotes
MARK = re.compile(r"(?P<quote>\"\"\"|'''|\"|')<STR_LIT:(?P<text>\S*?)>(?P=quote)|<NUM_LIT:(?P<number>[^>]*)>")


def source_files() -> Iterator[tuple[str, Path]]:
    """Yield (module name, file) of the chosen modules that exist in this Python, in order; no tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        single = root / f"{module}.py"
        for file in [single] if single.is_file() else sorted((root / module).rglob("*.py")):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            if not {"test", "tests"} & set(name.split(".")):
                yield name, file


def documented_functions(module: str, source: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (identifier, signature, docstring, dedented body) of every function that has the last two."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node)
        # f-strings are tokenized differently from one version of Python to the next
        if not docstring or any(isinstance(part, ast.JoinedStr) for part in ast.walk(node)):
            continue
        first = node.body[0].end_lineno
        signature = textwrap.dedent("".join(lines[node.lineno - 1:node.body[0].lineno - 1])).strip()
        body = textwrap.dedent("".join(lines[first:node.end_lineno]))
        if signature.endswith(":") and body.strip() and node.body[1].lineno > first:
            yield f"{module}:{node.name}:{node.lineno}", signature, docstring, body


def to_codexglue(code: str) -> tuple[str, list[tuple[str, str]]]:
    """Return code with layout tokens and every literal marked with its text, and the list of its literals."""
    literals: list[tuple[str, str]] = []
    parts: list[str] = []
    line, column, depth = 1, 0, 0
    pending = ""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in (tokenize.INDENT, tokenize.DEDENT):
            pending += "<INDENT>" if token.type == tokenize.INDENT else "<DEDENT>"
            line, column = token.end[0], token.end[1]
            continue
        if token.type in (tokenize.COMMENT, tokenize.ENCODING, tokenize.ENDMARKER):
            column = token.end[1] if token.start[0] == line else column
            continue
        if token.type in (tokenize.NEWLINE, tokenize.NL):
            if parts and parts[-1] != "<EOL>" and (token.type == tokenize.NEWLINE or depth > 0):
                parts.append("<EOL>")
            line, column = token.end[0] + 1, 0
            continue
        depth += (token.string in "([{") - (token.string in ")]}") if token.type == tokenize.OP else 0
        if token.start[0] > line and not (parts and parts[-1] == "<EOL>"):
            parts.append(" ")  # a line that a backslash continued
        elif parts and parts[-1] != "<EOL>" and token.start[0] == line:
            parts.append(" " * (token.start[1] - column))
        parts.append(pending)
        pending = ""
        parts.append(mark_literal(token, literals))
        line, column = token.end
    text = "".join(part.rstrip(" ") if following == "<EOL>" else part
                   for part, following in zip(parts, [*parts[1:], ""], strict=True))
    return text.removesuffix("<EOL>"), literals


def over_lines(code: str) -> bool:
    """Return whether a string in the code spans several lines."""
    return any(token.type == tokenize.STRING and "\n" in token.string
               for token in tokenize.generate_tokens(io.StringIO(code).readline))


def mark_literal(token: tokenize.TokenInfo, literals: list[tuple[str, str]]) -> str:
    """Return the token with its literal as <STR_LIT:text> or <NUM_LIT:text>; quotes stay."""
    if token.type == tokenize.NUMBER:
        literals.append(("NUM", token.string))
        return f"<NUM_LIT:{token.string}>"
    if token.type == tokenize.STRING and (match := STRING_LITERAL.fullmatch(token.string)):
        # CodeXGLUE folds white space within a string too, line ends among it
        text = re.sub(r"\s+", " ", match["text"]).replace(" ", "U+0020").replace(",", "U+002C")
        literals.append(("STR", text))
        return f"{match['prefix']}{match['quote']}<STR_LIT:{text}>{match['quote']}"
    return token.string


def empty_uncommon(code: str, common: set[tuple[str, str]]) -> str:
    """Return the code with the literals outside `common` emptied: <STR_LIT>, <NUM_LIT>."""
    def emptied(match: re.Match) -> str:
        literal = ("NUM", match["number"]) if match["quote"] is None else ("STR", match["text"])
        quote = match["quote"] or ""
        return match[0] if literal in common else f"{quote}<{literal[0]}_LIT>{quote}"
    return MARK.sub(emptied, code)


def main(output: Path) -> None:
    rows, counts = [], Counter()
    for module, file in source_files():
        source = file.read_text(encoding="utf-8")
        for identifier, signature, docstring, body in documented_functions(module, source):
            try:
                marked_signature, _ = to_codexglue(signature + " pass\n")
                marked_body, literals = to_codexglue(body)
            except (tokenize.TokenError, IndentationError):
                continue  # a body that begins on the docstring's line
            if len(marked_body) > MAX_BODY_CHARACTERS:
                continue
            # left out since the first version, which could not mark them: the methods stay the same ones
            if any(">" in text for _, text in literals) or over_lines(body):
                continue
            counts.update(literals)
            rows.append({"signature": marked_signature.removesuffix(" pass"), "docstring": docstring,
                         "body": marked_body, "id": identifier})
    common = set()
    for kind, number in (("STR", KEPT_STRINGS), ("NUM", KEPT_NUMBERS)):
        ranked = [(literal, n) for literal, n in counts.items() if literal[0] == kind and literal[1]]
        ranked.sort(key=lambda item: (-item[1], item[0]))
        common |= {literal for literal, _ in ranked[:number]}
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    with open(temporary, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps({**row, "signature": empty_uncommon(row["signature"], common),
                                  "body": empty_uncommon(row["body"], common)}) + "\n")
    os.replace(temporary, output)
    print(f"wrote {output}: {len(rows)} methods of Python {sys.version.split()[0]}'s standard library")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT_FILE", help="JSON lines")
    main(parser.parse_args().output)
