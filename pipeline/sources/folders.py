"""A plain folder, less what its .gitignore files name."""
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import git

from pipeline.sources.git import GIT_ENVIRONMENT
from pipeline.sources.source import Source, blob_id, find_license, shown_path


def read_plain_folder(root: Path, extensions: tuple[str, ...], folder: Path,
                      source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files below `root`, less what .gitignore files name."""
    repo = git.Repo.init(folder)
    listing = repo.git.execute(["git", f"--git-dir={repo.git_dir}", f"--work-tree={root}", "ls-files", "-z",
                                "--others", "--exclude-standard", "--full-name"], stdout_as_string=False,
                               env=GIT_ENVIRONMENT)
    repo.close()
    paths = [os.fsdecode(p) for p in sorted(listing.split(b"\0")) if p]
    source.license_file = find_license(paths)
    wanted = [p for p in paths if p.endswith(extensions)]
    regular = {p for p in wanted if stat.S_ISREG(os.lstat(root / p).st_mode)}
    source.skipped["not a regular file"] = [shown_path(p) for p in wanted if p not in regular]
    wanted = [p for p in wanted if p in regular]
    source.files = len(wanted)
    for path in wanted:
        with open(os.open(root / path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            data = file.read()
        source.received_bytes += len(data)
        yield path, blob_id(data), data
