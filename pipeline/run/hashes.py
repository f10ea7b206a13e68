"""Hashes that identify files, folders and the contents of a hub repository."""
import hashlib
import io
import json
from pathlib import Path

from pipeline.run.outputs import FOLDER_MARKER, MANIFEST

BLOCK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_files(path: Path) -> dict[str, str]:
    """Return {relative name: SHA-256} of a file, or of every file in a folder except its manifest."""
    if path.is_file():
        return {path.name: sha256_file(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in (MANIFEST, FOLDER_MARKER))
    return {p.relative_to(path).as_posix(): sha256_file(p) for p in files}


def combined_hash(files: dict[str, str]) -> str:
    """Return one SHA-256 for the result of `hash_files`."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def content_hashes(content: Path | bytes) -> tuple[str, str]:
    """Return both hashes by which a hub may identify a file: SHA-256 (large files), and git's SHA-1 of the
    blob (small files)."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    large, small = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            large.update(block)
            small.update(block)
    return large.hexdigest(), small.hexdigest()
