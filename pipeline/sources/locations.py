"""What a --repo_url names: a repository, near or far, or a plain folder."""
import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PipelineError, redact, shown_path
from pipeline.sources.folders import read_plain_folder
from pipeline.sources.git import is_git_repository, read_repository
from pipeline.sources.source import Source, local_path


def open_source(location: str, args: argparse.Namespace,
                folder: Path) -> tuple[Source, Iterator[tuple[str, str, bytes]]]:
    """Return the source at `location` and the iterator over its files, which fetches when first asked."""
    extensions = tuple(e if e.startswith(".") else f".{e}" for e in args.extensions)
    path, shown = local_path(location), shown_path(redact(location))
    if path and not path.is_dir():
        raise PipelineError(f"--repo_url {shown}: is a file; name a repository or a folder")
    if path is None and "://" not in location and ":" not in location:
        raise PipelineError(f"--repo_url {shown}: no such folder, and not a URL; check the spelling")
    name = shown_path(os.fsencode(path.resolve().name).decode("utf-8", "surrogateescape")) if path else shown
    source = Source(repository=name)
    if path is None or is_git_repository(path):
        return source, read_repository(location, args.revision, extensions, folder, source)
    if args.revision:
        raise PipelineError(f"--revision {args.revision}: {shown} is a plain folder, which has no revisions")
    return source, read_plain_folder(path.resolve(), extensions, folder, source)
