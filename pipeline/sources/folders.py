"""A plain folder, less what its .gitignore files name."""
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import git

from pipeline.errors import shown_path
from pipeline.sources.git import GIT_ENVIRONMENT, short_commands
from pipeline.sources.source import Source, blob_id, find_license


def read_plain_folder(root: Path, extensions: tuple[str, ...], folder: Path,
                      source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files below `root`, less what .gitignore files name."""
    with short_commands(shown_path(str(root))):
        repo = git.Repo.init(folder.absolute(), expand_vars=False)
        command = [git.Git.GIT_PYTHON_GIT_EXECUTABLE, f"--git-dir={repo.git_dir}", f"--work-tree={root}",
                   "ls-files", "-z", "--others", "--exclude-standard", "--full-name"]
        listing = repo.git.execute(command, stdout_as_string=False, env=GIT_ENVIRONMENT)
        repo.close()
    # as `list_tree` has them, whatever the encoding of file names on this machine
    paths = [p.decode("utf-8", "surrogateescape") for p in sorted(listing.split(b"\0")) if p]
    source.license_file = find_license(paths)
    wanted = {path: os.path.join(os.fsencode(root), path.encode("utf-8", "surrogateescape"))
              for path in paths if path.endswith(extensions)}
    regular = {path: place for path, place in wanted.items() if stat.S_ISREG(os.lstat(place).st_mode)}
    source.skipped["not a regular file"] = [shown_path(path) for path in wanted if path not in regular]
    source.files = len(regular)
    for path, place in regular.items():
        with open(os.open(place, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            data = file.read()
        source.received_bytes += len(data)
        yield path, blob_id(data), data
