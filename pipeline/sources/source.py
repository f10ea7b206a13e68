"""A code base, and which of its files are usable."""
import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.run.errors import redact, shown_path

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"


class Request(NamedTuple):
    """A requested code base: a --repo_url, or a clone or submodule in one."""
    location: str  # a URL or a path, without revision and folder
    path: Path | None  # of one on this disk
    revision: str | None
    folder: str  # in the repository, without slashes around it; "": all of it
    name: str  # in the provenance
    depth: int = 0  # how many others it lies in

    @property
    def shown(self) -> str:
        """Its name in messages: the location as given, without credentials."""
        return shown_path(redact(self.location))


@dataclass
class Source:
    """One code base: where it came from and what became of its files."""
    repository: str
    folder: str | None = None
    commit: str | None = None
    license: str | None = None  # an SPDX expression
    license_file: str | None = None
    nested_licenses: dict[str, str] = field(default_factory=dict)  # licence file -> SPDX identifier
    files: int = 0
    received_bytes: int = 0
    kept: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason -> paths
    duplicates: list[str] = field(default_factory=list)  # kept nevertheless
    parts: list[Request] = field(default_factory=list)  # clones and submodules in it, read after it
    licensed: dict[str, tuple[str, str]] = field(default_factory=dict)  # folder -> licence file, identifier

    def skip(self, reason: str, path: str) -> None:
        """Note that a file is left out."""
        self.skipped.setdefault(reason, []).append(path)

    def license_of(self, path: str) -> tuple[str | None, str | None]:
        """Return (licence file, SPDX expression) of the folder that is nearest above `path` and has one."""
        folder = path
        while folder:
            folder = folder.rpartition("/")[0]
            if folder in self.licensed:
                return self.licensed[folder]
        return self.license_file, self.license

    def as_json(self) -> dict[str, Any]:
        """Return its entry in the manifest."""
        entry = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in entry.items() if name not in ("parts", "licensed")}


def decode_source(data: bytes, max_file_bytes: int) -> tuple[str | None, str | None]:
    """Return (text, None), or (None, reason) for an unusable file.  BOM dropped, line ends become LF."""
    if len(data) > max_file_bytes:
        return None, "larger than --max_file_bytes"
    if data.startswith(LFS_POINTER):
        return None, "LFS pointer"
    if b"\0" in data:
        return None, "NUL bytes"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text, None) if text.strip() else (None, "empty")


def blob_id(data: bytes) -> str:
    """Return git's SHA-1 name for the content `data`."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def local_path(location: str) -> Path | None:
    """Return the file or folder that a --repo_url names, None where it names none on this machine.

    A `~` means a home only at the very beginning, and where there is one: `./~name` is a folder of that name.
    """
    if location.startswith("file://"):
        with contextlib.suppress(ValueError):
            parts = urlsplit(location)
            if parts.netloc in ("", "localhost"):
                path = Path(unquote(parts.path, errors="surrogateescape"))
                return path if path.exists() else None
        return None
    if "://" in location:
        return None
    path = Path(location)
    if location.startswith("~"):
        with contextlib.suppress(RuntimeError):  # nobody of that name
            path = path.expanduser()
    return path if path.exists() else None
