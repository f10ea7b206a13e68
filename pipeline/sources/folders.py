"""A plain folder, without what its .gitignore files name; clones in it are read as repositories."""
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import git

from pipeline.run.errors import PipelineError, shown_path
from pipeline.sources.git import GIT_ENVIRONMENT, short_commands
from pipeline.sources.licenses import Licenses
from pipeline.sources.local import git_folder, program_for, remote_url
from pipeline.sources.selection import Entry, Selection
from pipeline.sources.source import Request, Source, blob_id

LINK_MODE, FILE_MODE = "120000", "100644"


def list_folder(root: Path, scratch: Path) -> tuple[list[Entry], list[str]]:
    """Return (files, clones) below `root`, without what .gitignore files name, in the order of the paths'
    bytes; files without identifiers, clones by their folders."""
    repo = git.Repo.init(scratch.absolute(), expand_vars=False)
    command = [git.Git.GIT_PYTHON_GIT_EXECUTABLE, f"--git-dir={repo.git_dir}", f"--work-tree={root}",
               "ls-files", "-z", "--others", "--exclude-standard", "--full-name"]
    listing = repo.git.execute(command, stdout_as_string=False, env=GIT_ENVIRONMENT)
    repo.close()
    # as `list_tree` has them, whatever the encoding of file names on this machine
    paths = [p.decode("utf-8", "surrogateescape") for p in sorted(listing.split(b"\0")) if p]
    clones = [path.rstrip("/") for path in paths if path.endswith("/")]
    clones += [path.removesuffix("/HEAD") for path in paths if path.endswith("/HEAD")
               and git_folder(_place(root, path).parent)]  # bare ones
    inside = tuple(f"{clone}/" for clone in clones)
    entries = [Entry(FILE_MODE if stat.S_ISREG(os.lstat(_place(root, path)).st_mode) else LINK_MODE, "", path)
               for path in paths if not path.startswith(inside)]
    return entries, sorted(clones)


def _place(root: Path, path: str) -> Path:
    """Return where a path of `list_folder` lies."""
    return Path(os.fsdecode(os.path.join(os.fsencode(root), path.encode("utf-8", "surrogateescape"))))


def clone_requests(root: Path, clones: list[str], request: Request, selection: Selection,
                   source: Source) -> list[Request]:
    """Return the requests for the clones in a folder; those that --exclude names are noted in `source`."""
    requests = []
    for clone in clones:
        place, name = _place(root, clone), f"{request.name}/{shown_path(clone)}"
        reason = selection.refusal(f"{clone}/")
        git_dir = git_folder(place)
        if reason and reason != "not in --include":
            source.skip(reason, shown_path(clone))
        elif git_dir:
            program = program_for(place, git_dir)
            if not program.rev_parse("--verify", "--quiet", "HEAD^{commit}", with_exceptions=False):
                source.skip("clone without a commit at its HEAD", shown_path(clone))
                continue
            url = remote_url(program)
            requests.append(Request(str(place), place, None, "", url or name, request.depth + 1))
    return requests


def read_plain_folder(request: Request, selection: Selection, scratch: Path,
                      source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files of a folder, without what .gitignore files name."""
    root = request.path
    with short_commands(request.shown):
        entries, clones = list_folder(root, scratch)
        if request.folder and not (root / request.folder).is_dir():
            raise PipelineError(f"--repo_url {request.shown}: has no folder {shown_path(request.folder)}; "
                                "check the name after the #")
        source.parts += clone_requests(root, [c for c in clones if not request.folder
                                              or f"{c}/".startswith(f"{request.folder}/")],
                                       request, selection, source)

    def read(entry: Entry) -> bytes:
        place = os.open(_place(root, entry.path), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(place, "rb") as file:
            return file.read()

    wanted = selection.choose(entries, request.folder, source)
    wanted = Licenses(entries, wanted, selection).apply(read, source)
    source.files = len(wanted)
    for entry in wanted:
        data = read(entry)
        source.received_bytes += len(data)
        yield entry.path, blob_id(data), data
