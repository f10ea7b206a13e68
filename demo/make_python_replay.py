"""Make replay examples for train.py from the standard library: Python that the model must not forget.

Each line is {"prompt", "completion", "ends"}: neighbouring chunks of one source file, cut at line ends, of
which only the last ends something; and its functions, from their signature and docstring to their end, so
that the model does not forget that a function ends.  The modules are others than those of
make_python_benchmark.py, so that what is replayed is not what is measured.

Run:    python demo/make_python_replay.py OUTPUT_FILE
"""
import argparse
import ast
import io
import json
import os
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from make_python_benchmark import MODULES

# tests, tables, other people's code
LEFT_OUT = {"test", "tests", "site-packages", "__pycache__", "idle_test", "encodings", "pydoc_data"}
CHUNK_CHARACTERS = 320  # about 100 tokens
MAX_BODY_CHARACTERS = 700  # of a function; longer ones are in chunks only


def chunks(source: str) -> Iterator[str]:
    """Yield the source in chunks of whole lines, each of at least CHUNK_CHARACTERS but the last."""
    chunk = ""
    for line in source.splitlines(keepends=True):
        chunk += line
        if len(chunk) >= CHUNK_CHARACTERS:
            yield chunk
            chunk = ""
    if chunk:
        yield chunk


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield (signature and docstring, body), dedented, of the functions of at least two statements, or one
    and a docstring."""
    lines = list(io.StringIO(source))  # as ast counts them: a form feed ends none
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
        if first < node.lineno or node.end_lineno <= first:
            continue  # all on one line
        whole = list(io.StringIO(textwrap.dedent("".join(lines[node.lineno - 1:node.end_lineno]))))
        cut = first - node.lineno + 1
        prompt, body = "".join(whole[:cut]), "".join(whole[cut:])
        if len(body) <= MAX_BODY_CHARACTERS:
            yield prompt, body


def rows(source: str) -> Iterator[dict[str, object]]:
    """Yield the examples of one file."""
    parts = list(chunks(source))
    for place in range(0, len(parts) - 1, 2):
        yield {"prompt": parts[place], "completion": parts[place + 1], "ends": place + 2 == len(parts)}
    for prompt, body in functions(source):
        yield {"prompt": prompt, "completion": body, "ends": True}


def main(output: Path) -> None:
    root, number = Path(sysconfig.get_path("stdlib")), 0
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    with open(temporary, "w", encoding="utf-8") as out:
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if parts[0] in MODULES or LEFT_OUT & set(parts) or parts[0].startswith("config-"):
                continue
            try:
                source = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a file that shows another encoding
            for row in rows(source):
                out.write(json.dumps(row) + "\n")
                number += 1
    os.replace(temporary, output)
    print(f"wrote {output}: {number} examples of Python {sys.version.split()[0]}'s standard library")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT_FILE", help="JSON lines")
    main(parser.parse_args().output)
