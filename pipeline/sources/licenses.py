"""Licences: a code base's own file, those of its folders, and their SPDX identifiers."""
import re
import tempfile
from collections.abc import Callable

from identify.identify import license_id

from pipeline.run.errors import PipelineError, shown_path
from pipeline.sources.selection import REGULAR_FILE_MODES, Entry, Selection
from pipeline.sources.source import Source

LICENSE_NAME = re.compile(r"(un)?licen[sc]e|copying", re.IGNORECASE)
# In a folder of sources, so that `LicenseChecker.kt` does not match: the name, a suffix, a text's extension.
NESTED_NAME = re.compile(r"((un)?licen[sc]e|copying)([-._ ][\w.+-]*?)?(\.(txt|md|markdown|rst|adoc|lesser))?",
                         re.IGNORECASE)
SPDX_LINE = re.compile(r"SPDX-License-Identifier:\s*([\w.+-]+)")
MOST_BYTES = 200_000  # read of a licence file
UNKNOWN = "NOASSERTION"  # SPDX's word for a licence that is not determined


def find_license(paths: list[str]) -> str | None:
    """Return the repository's own licence file: at the root, else in a folder named `license`."""
    for folder in ("", "license/", "licence/", "licenses/"):
        start = len(folder)
        names = [p for p in paths if p.lower().startswith(folder) and "/" not in p[start:]]
        candidates = sorted((p for p in names if LICENSE_NAME.match(p[start:])),
                            key=lambda p: (not p[start:].lower().startswith("licen"), p))
        if candidates:
            return candidates[0]
    return None


def nested_licenses(paths: list[str], extensions: tuple[str, ...]) -> dict[str, list[str]]:
    """Return {folder: its licence files}."""
    files: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if NESTED_NAME.fullmatch(name) and not name.endswith(extensions):
            files.setdefault(folder, []).append(path)
    return files


def spdx_identifier(data: bytes) -> str:
    """Return the SPDX identifier of a licence's text, UNKNOWN where the text names none and is not
    within 5 % of the characters of one that `identify` knows (choosealicense.com's)."""
    text = data[:MOST_BYTES].decode("utf-8", "replace")
    if named := SPDX_LINE.search(text):
        return named[1]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return license_id(file.name) or UNKNOWN


class Licenses:
    """The licences that the wanted files of a code base are under.

    A file is under the licence of the nearest folder above it that holds one, else the code base's own.  Of
    several licence files in one folder, all apply.
    """

    def __init__(self, entries: list[Entry], wanted: list[Entry], selection: Selection):
        by_path = {entry.path: entry for entry in entries if entry.mode in REGULAR_FILE_MODES}
        folders = nested_licenses(list(by_path), selection.extensions)
        own = find_license(list(by_path))
        self.own = own.rpartition("/")[0] if own else None
        if own:
            files = {*folders.get(self.own, []), own}
            folders[self.own] = sorted(files, key=lambda path: (path != own, path))
        used = {_nearest(entry.path, folders) for entry in wanted} | {self.own}
        self.wanted, self.allowed = wanted, selection.licenses
        # folder -> its licence files; what has to be read before `apply`
        self.files = {folder: [by_path[path] for path in folders[folder]] for folder in sorted(used - {None})}

    def apply(self, read: Callable[[Entry], bytes], source: Source) -> list[Entry]:
        """Put the licences into `source` and return the wanted files that --licenses allows.  PipelineError
        where the licence of the code base itself is not allowed."""
        for folder, files in self.files.items():
            identifiers = {shown_path(file.path): spdx_identifier(read(file)) for file in files}
            first, expression = next(iter(identifiers)), " AND ".join(sorted(set(identifiers.values())))
            if folder == self.own:
                source.license_file, source.license = first, expression
            else:
                source.licensed[folder] = first, expression
                source.nested_licenses |= identifiers
        if self.allowed is None:
            return self.wanted
        kept = []
        for entry in self.wanted:
            file, expression = source.license_of(entry.path)
            if expression and set(expression.casefold().split(" and ")) <= self.allowed:
                kept.append(entry)
            elif file == source.license_file:
                raise PipelineError(f"--licenses: {source.repository} is under none of them: "
                                    + (f"{file} is {expression}" if file else "no licence file was found")
                                    + "; add it to --licenses, or leave that code base out")
            else:
                source.skip(f"licence {expression}", shown_path(entry.path))
        return kept


def _nearest(path: str, folders: dict[str, list[str]]) -> str | None:
    """Return the nearest folder above `path` that holds a licence; None: there is none."""
    while path:
        path = path.rpartition("/")[0]
        if path in folders:
            return path
    return None
