"""Where the lines of a raw file came from, by the file beside it."""
import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.clean_file import Origin
from pipeline.run.jsonl import parse_json_line


@contextlib.contextmanager
def origins(raw: Path) -> Iterator[Iterator[Origin]]:
    """Yield an iterator over the origins of the lines of the raw file, without end where it is not known.

    Reading on raises PipelineError, with the line, where the file beside it is shorter or damaged.
    """
    path = raw.with_name(f"{raw.stem}.provenance.jsonl")
    if not path.is_file():
        yield iter(Origin, None)
        return
    with open(path, "rb") as file:
        yield _read(path, file)


def _read(path: Path, file: Iterator[bytes]) -> Iterator[Origin]:
    number = 0
    while True:
        number += 1
        row = parse_json_line(path, number, next(file, b""), {"path": str})
        yield Origin(*(row.get(name) for name in Origin._fields))
