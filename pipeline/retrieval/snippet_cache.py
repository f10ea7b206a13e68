"""The pieces of a data set's train split that belong before its files, found once and kept in a file."""
import functools
import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.prompts.repository_form import Snippet
from pipeline.retrieval.index import QUERY_LINES, Index, Place
from pipeline.retrieval.snippets import PIECE_LINES, PIECE_STEP
from pipeline.run.errors import PipelineError
from pipeline.run.manifests import sealed_manifest
from pipeline.run.outputs import atomic_file, output_lock
from pipeline.run.progress import progress

FORMAT = 1  # of what is found: a file of another is not used
SAVE_SECONDS = 120  # of looking for pieces, at most, that a kill loses
SETTINGS = {"format": FORMAT, "piece_lines": PIECE_LINES, "piece_step": PIECE_STEP,
            "query_lines": QUERY_LINES}


class Request(NamedTuple):
    """A place that pieces are looked for."""
    repository: str | None
    query: str  # the lines before it
    file: int | None = None  # the number of its file in train; None: of another split
    text: str = ""  # of that file of another split, whole

    def key(self) -> str:
        """Return a name of 80 bits, by which what was found is kept."""
        own = str(self.file) if self.file is not None else hashlib.sha1(self.text.encode()).hexdigest()
        digest = hashlib.sha1("\0".join((self.repository or "", own, self.query)).encode())
        return digest.hexdigest()[:20]


def pieces_needed(tokens: int) -> int:
    """Return how many pieces are looked for, to fill `tokens`: more than have room, of short lines too."""
    return 3 + tokens // 64


def cache_of(dataset: str, output: Path) -> Path:
    """Return the file that keeps what is found: beside the data set's folder, or the output of a run on a hub
    data set."""
    folder = Path(dataset).resolve() if Path(dataset).is_dir() else output
    return folder.with_name(f"{folder.name}.pieces.json")


class RepositoryFiles:
    """The files of a data set's train split, as what pieces are taken from.

    Pieces come from the repository of the file that they are looked for, and never from that file or its
    near-copies.  Memory: the index of the largest repository (`Index`), and what was found.
    """

    def __init__(self, files: Any, source: str):
        """Take the `files` of the train split of the data set `source`.

        Raises PipelineError where they hold no repository and path.
        """
        missing = {"repository", "path", "text"} - set(files.column_names)
        if missing:
            raise PipelineError(f"{source}: its files have no column {', '.join(sorted(missing))}; run "
                                "preprocess_data.py again, or leave --repository_tokens out")
        self.files, self.paths = files, files["path"][:]
        self.rows: dict[str | None, list[int]] = defaultdict(list)
        for row, repository in enumerate(files["repository"][:]):
            self.rows[repository].append(row)

    def piece(self, place: Place) -> Snippet:
        """Return a piece that was found, as it is shown."""
        text = self.files[place.file]["text"][place.begin:place.end]
        return Snippet(self.paths[place.file] or "", text)

    def following(self, place: Place) -> str:
        """Return a piece and all that follows it in its file."""
        return self.files[place.file]["text"][place.begin:]

    @functools.cached_property
    def files_hash(self) -> str:
        """Return the SHA-256 of what pieces are taken from, whichever way the data set came here."""
        digest = hashlib.sha256()
        for rows in self.files.select_columns(["repository", "path", "text"]).iter(batch_size=100):
            for row in zip(rows["repository"], rows["path"], rows["text"], strict=True):
                digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def find(self, requests: Sequence[Request], number: int, cache: Path | None) -> list[list[Place]]:
        """Return for each request at most `number` places, the best first, from the file `cache` as far as it
        has them; the others are looked for, and kept there.  Without one, nothing is kept.

        Several processes that ask for the same wait for the first.
        """
        keys = [request.key() for request in requests]
        asked = dict(zip(keys, requests, strict=True))
        if cache is None:
            known: dict[str, list] = {}
            self._complete(known, asked, number, lambda: None)
            return [[Place(*place) for place in known[key]] for key in keys]
        header = {**SETTINGS, "files_hash": self.files_hash, "pieces": number}
        known = _read(cache, header)
        if not set(keys) <= set(known):
            try:
                with output_lock(cache, wait=True):
                    known = _read(cache, header)
                    self._complete(known, asked, number, lambda: _write(cache, header, known))
            except PermissionError as error:
                print(f"note: {error.filename or cache}: cannot be written; the pieces that are found are "
                      "not kept", file=sys.stderr)
                self._complete(known, asked, number, lambda: None)
        return [[Place(*place) for place in known[key]] for key in keys]

    def _complete(self, known: dict[str, list], requests: dict[str, Request], number: int,
                  save: Callable[[], None]) -> None:
        """Look for what is not `known`, a repository at a time, and save it."""
        missing: dict[str | None, list[str]] = defaultdict(list)
        for key, request in requests.items():
            if key not in known:
                missing[request.repository].append(key)
        saved = time.monotonic()
        with progress(total=sum(map(len, missing.values())), desc="pieces of the repository", unit=" places",
                      shown=bool(missing)) as bar:
            for repository, keys in missing.items():
                rows = self.rows.get(repository, [])
                index = Index(self.files[row]["text"] for row in rows)
                inside = {row: i for i, row in enumerate(rows)}
                kin: dict[str | int, list[int]] = {}
                for key in keys:
                    request = requests[key]
                    own = request.text if request.file is None else request.file
                    if own not in kin:
                        kin[own] = index.kin_of_text(own) if isinstance(own, str) else index.kin(inside[own])
                    known[key] = [(rows[place.file], place.begin, place.end)
                                  for place in index.best(request.query, number, kin[own])]
                    bar.update()
                    if time.monotonic() - saved > SAVE_SECONDS:
                        save()
                        saved = time.monotonic()
        if missing:
            save()


def _read(cache: Path, header: dict[str, Any]) -> dict[str, list]:
    """Return what a file keeps; nothing where it is damaged, or was made of something else."""
    if not cache.is_file():
        return {}
    try:
        kept = json.loads(cache.read_bytes())
        if kept["checksum"] != sealed_manifest(kept)["checksum"]:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        print(f"note: {cache}: damaged; its pieces are looked for again", file=sys.stderr)
        return {}
    return kept["found"] if kept["header"] == header else {}


def _write(cache: Path, header: dict[str, Any], found: dict[str, list]) -> None:
    with atomic_file(cache) as file:  # without the indentation that a person would read: millions of numbers
        file.write(json.dumps(sealed_manifest({"header": header, "found": found}), separators=(",", ":")))
