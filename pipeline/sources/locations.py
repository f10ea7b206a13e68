"""What a --repo_url names: a repository, near or far, or a plain folder."""
import argparse
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PipelineError, redact
from pipeline.sources.folders import read_plain_folder
from pipeline.sources.git import is_git_repository, read_repository
from pipeline.sources.source import Source


def open_source(location: str, args: argparse.Namespace,
                folder: Path) -> tuple[Source, Iterator[tuple[str, str, bytes]]]:
    """Return the source at `location` and the iterator over its files, which fetches when first asked."""
    extensions = tuple(e if e.startswith(".") else f".{e}" for e in args.extensions)
    path = Path(location).expanduser()
    if path.exists() and not path.is_dir():
        raise PipelineError(f"--repo_url {location}: is a file; name a repository or a folder")
    if path.is_dir() and not is_git_repository(path):
        if args.revision:
            raise PipelineError(f"--revision {args.revision}: {location} is a plain folder, which has no "
                                "revisions")
        source = Source(repository=path.resolve().name)
        return source, read_plain_folder(path.resolve(), extensions, folder, source)
    if not path.exists() and "://" not in location and ":" not in location:
        raise PipelineError(f"--repo_url {location}: no such folder, and not a URL; check the spelling")
    source = Source(repository=path.resolve().name if path.is_dir() else redact(location))
    return source, read_repository(location, args.revision, extensions, folder, source)
