"""A code base, and which of its files can serve."""
import contextlib
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import shown_path

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
LICENSE_NAME = re.compile(r"(un)?licen[sc]e|copying", re.IGNORECASE)


@dataclass
class Source:
    """One code base: where it came from and what became of its files."""
    repository: str
    commit: str | None = None
    license_file: str | None = None
    files: int = 0
    received_bytes: int = 0
    kept: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason -> paths
    duplicates: list[str] = field(default_factory=list)  # kept all the same


def decode_source(data: bytes, max_file_bytes: int) -> tuple[str | None, str | None]:
    """Return (text, None), or (None, reason) for a file that cannot serve.  BOM dropped, line ends LF."""
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
    if "://" in location:
        return None
    path = Path(location)
    if location.startswith("~"):
        with contextlib.suppress(RuntimeError):  # nobody of that name
            path = path.expanduser()
    return path if path.exists() else None


def find_license(paths: list[str]) -> str | None:
    """Return the repository's own licence file: at the root, else in a folder named `license`."""
    for folder in ("", "license/", "licence/", "licenses/"):
        start = len(folder)
        names = [p for p in paths if p.lower().startswith(folder) and "/" not in p[start:]]
        found = sorted((p for p in names if LICENSE_NAME.match(p[start:])),
                       key=lambda p: (not p[start:].lower().startswith("licen"), p))
        if found:
            return shown_path(found[0])
    return None
