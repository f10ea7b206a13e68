"""Git's object store: the tree of a commit, and contents by identifier."""
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import git

from pipeline.run.errors import PipelineError
from pipeline.sources.selection import Entry


def list_tree(program: Any, commit: str) -> list[Entry]:
    """Return everything in the commit's tree, in the order of the paths' bytes; `program`: a git.Git."""
    listing = program.ls_tree("-r", "-z", "--full-tree", commit, stdout_as_string=False)
    rows = (row.partition(b"\t") for row in listing.split(b"\0") if row)
    return [Entry(*head.decode().split()[0:3:2], path.decode("utf-8", "surrogateescape"))
            for head, _, path in rows]


class Contents:
    """A `git cat-file` process that returns contents."""

    def __init__(self, process: Any):
        self.process = process

    def get(self, blob: str) -> bytes | None:
        """Return the content of a blob, None where the store lacks it."""
        self.process.stdin.write(f"{blob}\n".encode())
        self.process.stdin.flush()
        head = self.process.stdout.readline().split()
        if len(head) == 2:  # the identifier, and `missing`
            return None
        if len(head) != 3:
            said = self.process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            if any("from promisor remote" in line for line in said):  # an older git: the blob is missing
                return None
            raise PipelineError(f"git: {said[-1] if said else f'{blob} cannot be read'}; check the "
                                "repository (git fsck)")
        data = self.process.stdout.read(int(head[2]))
        self.process.stdout.read(1)
        return data


@contextmanager
def contents(program: Any) -> Iterator[Contents]:
    """Yield the contents of a store.  GitPython's own reader does not support SHA-256 identifiers."""
    command = [git.Git.GIT_PYTHON_GIT_EXECUTABLE, "cat-file", "--batch"]
    running = program.execute(command, as_process=True, istream=subprocess.PIPE)  # ends with this object
    process = running.proc
    try:
        yield Contents(process)
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        process.wait()
