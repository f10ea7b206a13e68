"""The files that are dropped or cut, each with its path and the reason: dropped.jsonl."""
import json
from typing import IO

from pipeline.preparation.provenance import Origin


class DroppedFiles:
    """Writes a line to an open file for each file of the raw file that is dropped or cut."""

    def __init__(self, file: IO[str]):
        self.file = file

    def add(self, source_line: int, origin: Origin, reason: str, kept_line: int | None = None,
            examples_left_out: int = 0) -> None:
        """Write a line.  `kept_line`: the line of the raw file with the file that is kept instead;
        `examples_left_out`: of a file that is cut, not dropped."""
        json.dump({"source_line": source_line, "repository": origin.repository, "path": origin.path,
                   "reason": reason, "kept_line": kept_line, "examples_left_out": examples_left_out},
                  self.file, ensure_ascii=False)
        self.file.write("\n")
