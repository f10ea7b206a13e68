"""A git repository on this disk: read in place, nothing is copied or fetched.

Its own settings cannot make git run anything: revisions, trees and contents are read without hooks, filters
or a pager, and no protocol is allowed by which a partial clone would fetch what it lacks.
"""
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import git

from pipeline.run.errors import PipelineError, redact, shown_path
from pipeline.sources.git import GIT_ENVIRONMENT, check_folder, short_commands, shown_names
from pipeline.sources.licenses import Licenses
from pipeline.sources.objects import contents, list_tree
from pipeline.sources.selection import Entry, Selection
from pipeline.sources.source import Request, Source
from pipeline.sources.submodules import submodule_requests

REMOTE_URL = re.compile(r"(https?|ssh|git)://.*|(?!file:)[^/:]+:.*")


def git_folder(path: Path) -> Path | None:
    """Return the folder of git of a repository whose root is `path`, bare, a worktree or neither; None where
    `path` is no such root."""
    place = path / ".git"
    if place.is_file():  # of a worktree or a submodule
        named = place.read_bytes().removeprefix(b"gitdir:").strip().decode("utf-8", "surrogateescape")
        if not (path / named / "HEAD").is_file():
            raise PipelineError(f"--repo_url {shown_path(str(path))}: its .git file names "
                                f"{shown_path(named)}, where no repository is; repair it (git worktree "
                                "repair), or name another")
        return path / named
    if place.exists():
        if not os.path.lexists(place / "HEAD"):
            raise PipelineError(f"--repo_url {shown_path(str(path))}: its .git is no repository (it has no "
                                "HEAD); repair it, or move it away to have the folder read as a plain one")
        return place
    return path if (path / "HEAD").is_file() and (path / "objects").is_dir() else None


def enclosing_repository(path: Path) -> tuple[Path, str] | None:
    """Return (root, folder in it) of the repository that the folder `path` lies in; None where in none."""
    for parent in path.parents:
        with contextlib.suppress(PipelineError):  # a .git that is no repository: git itself goes on upwards
            if (parent / ".git").exists() and git_folder(parent):
                return parent, path.relative_to(parent).as_posix()
    return None


def program_for(path: Path, folder: Path) -> Any:
    """Return a git.Git that reads the repository `folder` of `path`, and no other."""
    program = git.Git(str(path))
    # with GIT_DIR set, git searches for no repository, and checks neither its owner nor whether it is bare
    program.update_environment(**GIT_ENVIRONMENT | {"GIT_DIR": str(folder.absolute()),
                                                    "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"})
    return program


def remote_url(program: Any) -> str | None:
    """Return the URL of the repository's remote `origin`, or its only one, without credentials; None where
    there is none, or where it lies on this disk."""
    listing = program.config("--get-regexp", r"^remote\..*\.url$", with_exceptions=False)
    remotes = dict(line.split(" ", 1) for line in listing.splitlines() if " " in line)
    url = remotes.get("remote.origin.url") or (next(iter(remotes.values())) if len(remotes) == 1 else "")
    return redact(url) if REMOTE_URL.fullmatch(url) else None


def has_folder(root: Path, revision: str | None, folder: str) -> bool:
    """Return whether the requested commit of the repository at `root` holds that folder."""
    program = program_for(root, git_folder(root))
    kind = program.cat_file("-t", f"{revision or 'HEAD'}:{folder}", with_exceptions=False)
    return kind == "tree"


def commit_of(program: Any, request: Request) -> str:
    """Return the identifier of the requested commit; PipelineError where there is none."""
    if (request.revision or "").startswith("-"):
        raise PipelineError(f"--repo_url {request.shown}: a URL or revision cannot start with '-'")
    wanted = request.revision or "HEAD"
    try:
        return program.rev_parse("--verify", f"{wanted}^{{commit}}")
    except git.exc.GitCommandError as error:
        if "fatal: bad config" in str(error.stderr) or "not a git repository" in str(error.stderr):
            raise
        said = str(error.stderr)
    listing = program.for_each_ref("--format=%(refname)", "refs/heads", "refs/remotes")
    names = [re.sub(r"refs/(heads|remotes)/", "", line) for line in listing.splitlines()
             if not line.endswith("/HEAD")]
    where, branches = f"--repo_url {request.shown}", shown_names(names)
    if wanted == "HEAD":
        raise PipelineError(f"{where}: its HEAD names a branch that does not exist; choose one of its "
                            f"branches with --revision: {branches}" if names else
                            f"{where}: the repository is empty (it has no commit)")
    if "ambiguous" in said:
        raise PipelineError(f"--revision {wanted}: several objects of {request.shown} begin so; write more "
                            "of it")
    shallow = ""
    if program.rev_parse("--is-shallow-repository") == "true":
        shallow = " (it is a shallow clone: git fetch --unshallow gets the history)"
    raise PipelineError(f"--revision {wanted}: {request.shown} has no such branch, tag or commit{shallow}; "
                        f"its branches: {branches}")


def lacking(program: Any, name: str, what: str) -> PipelineError:
    """Return the error to raise where a repository lacks something that is wanted."""
    partial = program.config("--get-regexp", r"^(remote\..*\.promisor|extensions\.partialclone)$",
                             with_exceptions=False)
    if partial:
        return PipelineError(f"--repo_url {name}: is a partial clone and lacks {what}; name the repository "
                             "that it was cloned from, or check the commit out in it, which fetches what is "
                             "missing")
    return PipelineError(f"--repo_url {name}: lacks {what}; check the repository (git fsck)")


def read_local(request: Request, git_dir: Path, selection: Selection,
               source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files of a repository on this disk, by path."""
    program = program_for(request.path, git_dir)
    with short_commands(request.shown):
        source.commit = commit_of(program, request)
        try:
            entries = list_tree(program, source.commit)
        except git.exc.GitCommandError:
            raise lacking(program, request.shown, "what its commit consists of") from None
        wanted = selection.choose(entries, request.folder, source)
        check_folder(request, entries, source)
        with contents(program) as store:
            def read(entry: Entry) -> bytes:
                data = store.get(entry.blob)
                if data is None:
                    raise lacking(program, request.shown, f"the content of {shown_path(entry.path)}")
                return data

            if selection.submodules:
                source.parts += submodule_requests(entries, read, request, source, program, git_dir)
            wanted = Licenses(entries, wanted, selection).apply(read, source)
            source.files = len(wanted)
            for entry in wanted:
                yield entry.path, entry.blob, read(entry)
