"""Rows of results that a rerun goes on with: files of whole batches, each line with its checksum."""
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.processes import Processes
from pipeline.model.model_source import ModelSource
from pipeline.run.errors import looks_like_path
from pipeline.run.outputs import atomic_file
from pipeline.run.progress import progress
from pipeline.tasks.task import Task


def prediction_file(folder: Path, source: ModelSource, task: Task, header: dict[str, Any]) -> Path:
    """Return the file of predictions, named for the model, the set and a hash of all that they depend on."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
    name = Path(source.name).name if looks_like_path(source.name) else source.name
    model = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    context, suffix, repository = task.tokens
    set_name = (task.source.language or task.name.split()[0]).lower() + "-methods" * task.methods
    set_name += f"-{context}" if context else ""
    set_name += "-infilling" if suffix else ""
    set_name += f"-repository-{repository}" if repository else ""
    return folder / f"{model}.{set_name}.{digest}.jsonl"


def note_other_settings(file: Path, header: dict[str, Any]) -> None:
    """Where `file` is not there, say in what settings the newest other predictions of the set differ."""
    same_set = file.parent.glob(f"{file.name.rsplit('.', 2)[0]}.*.jsonl")
    others = [other for other in same_set if not other.name.endswith(".losses.jsonl")]
    if others and not file.is_file():
        newest = max(others, key=lambda other: other.stat().st_mtime)
        with open(newest, encoding="utf-8") as lines:
            then = json.loads(next(lines, "{}")).get("header", {})
        print(f"{newest.name} differs in {', '.join(key for key in header if then.get(key) != header[key])}; "
              f"{file.name} is begun", file=sys.stderr)


def read_rows(file: Path, header: dict[str, Any], batches: list[list[int]],
              task: Task) -> dict[int, dict[str, Any]]:
    """Return the rows of whole batches in `file`, by example.

    The batches in it follow the plan, and some may be missing.  What follows a line that is torn or damaged,
    and a batch that is not whole, is left out; with another header, everything.
    """
    # what follows the last line end is torn
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(unsealed_row(line))
        except ValueError:
            print(f"{file}, line {number}: damaged; what follows is done again", file=sys.stderr)
            break
    done: dict[int, dict[str, Any]] = {}
    if rows and rows[0] != {"header": header}:
        print(f"{file}: its header is not that of this run; it is begun anew", file=sys.stderr)
    elif rows:
        place = 1
        for batch in batches:
            found = rows[place:place + len(batch)]
            if [row.get("id") for row in found] == [task.examples[i].id for i in batch]:
                done.update(zip(batch, found, strict=True))
                place += len(batch)
    return done


def sealed_row(row: dict[str, Any]) -> str:
    """Return the row as a line of JSON with a checksum of the rest as its last field."""
    text = json.dumps(row, ensure_ascii=False)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'


def unsealed_row(line: bytes) -> dict[str, Any]:
    """Return the row of a line, without its checksum; ValueError where that is not the line's."""
    row = json.loads(line)
    stored = row.pop("crc32", None) if isinstance(row, dict) else None
    if stored != zlib.crc32(json.dumps(row, ensure_ascii=False).encode()):
        raise ValueError("not the row that was written")
    return row


def join_files(file: Path, header: dict[str, Any], batches: list[list[int]],
               task: Task) -> dict[int, dict[str, Any]]:
    """Bring the rows of `file` and of the parts beside it into `file`, and return them.

    They are whole batches, in the order of the plan.
    """
    parts = sorted(file.parent.glob(f"{file.name}.part*"))
    done: dict[int, dict[str, Any]] = {}
    for source in (file, *parts):
        done.update(read_rows(source, header, batches, task))
    rows = [{"header": header}, *(done[i] for batch in batches for i in batch if i in done)]
    text = "".join(map(sealed_row, rows)).encode()
    if not file.is_file() or file.read_bytes() != text:
        with atomic_file(file, binary=True) as out:
            out.write(text)
    for part in parts:
        part.unlink()
    return done


def complete_rows(file: Path, header: dict[str, Any], batches: list[list[int]], task: Task,
                  make: Callable[[list[int]], list[dict[str, Any]]], what: str,
                  processes: Processes) -> list[dict[str, Any]]:
    """Return the rows of all examples: the whole batches that `file` has, and the others, which are appended.

    `make(batch)` returns the rows of a batch.  Each of several processes appends its share to a part beside
    `file`, and the first brings them together into what one process would have written; the others return an
    empty list.
    """
    if processes.rank == 0:
        found = len(join_files(file, header, batches, task))
        if found:
            print(f"{what}: {found} of {len(task.examples)} examples found in {file}", file=sys.stderr)
    processes.wait()
    done = read_rows(file, header, batches, task)
    missing = [batch for batch in batches if batch[0] not in done]
    in_order = processes.number == 1 and missing == batches[len(batches) - len(missing):]
    own = file if in_order else file.with_name(f"{file.name}.part{processes.rank}")
    share = missing[processes.rank::processes.number]
    with (open(own, "a", encoding="utf-8") as out, torch.inference_mode(),
          progress(total=sum(map(len, share)), desc=what, unit=" examples",
                   shown=processes.rank == 0) as bar):
        if not in_order:
            out.write(sealed_row({"header": header}))
        for batch in share:
            for i, row in zip(batch, make(batch), strict=True):
                done[i] = {"id": task.examples[i].id} | row
                out.write(sealed_row(done[i]))
            out.flush()
            bar.update(len(batch))
    processes.wait()
    if processes.rank:
        return []
    done = done if in_order else join_files(file, header, batches, task)
    return [done[i] for i in range(len(task.examples))]
