"""Output folders as the stages write them, for the tests of what reads and replaces them."""
import argparse
from pathlib import Path

from pipeline.run.hashes import hash_files
from pipeline.run.manifests import write_manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def our_folder(path: Path, **files: str) -> Path:
    """Make a folder as a stage writes it."""
    path.mkdir(parents=True)
    for name, text in (files or {"data": "x"}).items():
        (path / name).write_text(text)
    write_manifest(path / "manifest.json", argparse.Namespace(), hash_files(path), 0.0)
    return path
