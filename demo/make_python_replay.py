"""Make replay examples for train.py from the standard library: Python that the model must not forget.

Each line is {"prompt", "completion"}: neighbouring pieces of one source file, cut at line ends.  The modules
are others than those of make_python_benchmark.py, so that what is replayed is not what is measured.

Run:    python demo/make_python_replay.py OUTPUT_FILE
"""
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from make_python_benchmark import MODULES

# tests, tables, other people's code
LEFT_OUT = {"test", "tests", "site-packages", "__pycache__", "idle_test", "encodings", "pydoc_data"}
PIECE_CHARACTERS = 320  # about 100 tokens


def pieces(source: str) -> Iterator[str]:
    """Yield the source in pieces of whole lines, each of at least PIECE_CHARACTERS but the last."""
    piece = ""
    for line in source.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE_CHARACTERS:
            yield piece
            piece = ""


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
                found = list(pieces(file.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue  # a file that shows another encoding
            for prompt, completion in zip(found[::2], found[1::2], strict=False):
                out.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
                number += 1
    os.replace(temporary, output)
    print(f"wrote {output}: {number} examples of Python {sys.version.split()[0]}'s standard library")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
