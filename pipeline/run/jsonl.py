"""Reading JSON lines; errors name the file and line number."""
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.run.errors import PipelineError


def read_jsonl(path: Path, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file one by one, each holding `fields` (name -> type).

    Raises PipelineError with the file and line number at the first line that is not such an object.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; run the stage that writes it first, or name another file")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_json_line(path, number, line, fields)


def parse_json_line(path: Path, number: int, line: bytes, fields: dict[str, type]) -> dict[str, Any]:
    """Return line `number` of `path` as an object with `fields`; PipelineError says what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise PipelineError(f"{path}, line {number}: not valid JSON; fix or remove the line, or write the "
                            "file again") from None
    if not isinstance(row, dict):
        raise PipelineError(f"{path}, line {number}: not a JSON object; expected the fields "
                            f"{', '.join(fields)}")
    for field, kind in fields.items():
        if field not in row:
            raise PipelineError(f"{path}, line {number}: no field {field!r}; it has "
                                f"{', '.join(row) or 'no fields'}")
        if not isinstance(row[field], kind):
            raise PipelineError(f"{path}, line {number}: {field!r} is not of type {kind.__name__}")
        if kind is str and not _encodable(row[field]):
            raise PipelineError(f"{path}, line {number}: {field!r} holds a lone surrogate, which is not text")
    return row


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
