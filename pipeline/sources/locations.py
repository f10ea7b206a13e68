"""What a --repo_url names: a local or remote repository, a folder in it, a plain folder, or one of clones."""
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.run.errors import PipelineError, redact, shown_path
from pipeline.sources.folders import read_plain_folder
from pipeline.sources.git import read_repository
from pipeline.sources.local import (
    enclosing_repository,
    git_folder,
    has_folder,
    program_for,
    read_local,
    remote_url,
)
from pipeline.sources.selection import Selection
from pipeline.sources.source import Request, Source, local_path

USER_AT_HOST = re.compile(r"[^/@#]+@[^/@#:]+:")  # git@example.org:..., also where there is a folder `git`


def split_location(text: str) -> tuple[str, str | None, str]:
    """Return (location, revision, folder) of `LOCATION[@REVISION][#FOLDER]`.

    A path is taken as far as it exists, as its name may hold an `@` or `#`.  In a URL, the revision follows
    the first `.git@`, else the last `@` of its path, unless that part itself ends in .git.
    """
    if local_path(text):
        return text, None, ""
    marks = [] if USER_AT_HOST.match(text) else [i for i in range(1, len(text)) if text[i] in "@#"]
    for end in reversed(marks):
        if local_path(text[:end]):
            revision, folder = _split_at(text[end + 1:], "#") if text[end] == "@" else ("", text[end + 1:])
            return text[:end], revision or None, folder
    base, folder = _split_at(text, "#")
    start = base.find("/", base.find("://") + 3) if "://" in base else base.find(":")
    head, path = base[:max(start, 0)], base[max(start, 0):]
    place, _, revision = path.partition(".git@") if ".git@" in path else path.rpartition("@")
    if start < 0 or not (place and revision) or revision.endswith(".git"):
        return base, None, folder
    return head + place + (".git" if ".git@" in path else ""), revision, folder


def _split_at(text: str, mark: str) -> tuple[str, str]:
    """Return what stands before and after the last `mark`."""
    before, separator, after = text.rpartition(mark)
    return (before, after) if separator else (text, "")


def requests_for(locations: list[str], revision: str | None) -> list[Request]:
    """Return the request of each --repo_url; `revision`, from --revision, is for those that name none.

    PipelineError for one that names nothing.  A repository on this disk is named by its remote's URL, else by
    as many of the last parts of its path as distinguish those of one run.
    """
    requests = [_request(text, revision) for text in locations]
    paths = {request.path for request in requests if request.path}
    named = []
    for request in requests:
        if request.path:
            request = request._replace(name=_name(request.path, paths))
            if git_dir := git_folder(request.path):
                url = remote_url(program_for(request.path, git_dir))
                request = request._replace(name=url or request.name)
        named.append(request)
    return named


def _request(text: str, revision: str | None) -> Request:
    """Return the request for one --repo_url; one on this disk is named by the last part of its path."""
    location, own_revision, folder = split_location(text)
    path, shown = local_path(location), shown_path(redact(location))
    folder = folder.strip("/")
    if ".." in PurePosixPath(folder).parts:
        raise PipelineError(f"--repo_url {shown_path(redact(text))}: its folder leads out of the repository; "
                            "name one in it")
    revision = own_revision or revision
    if path is None:
        if location.startswith("file://") or ("://" not in location and ":" not in location):
            raise PipelineError(f"--repo_url {shown}: no such folder, and not a URL; check the spelling")
        return Request(location, None, revision, folder, shown)
    if not path.is_dir():
        raise PipelineError(f"--repo_url {shown}: is a file; name a repository or a folder")
    path = path.resolve()
    if not git_folder(path) and (enclosing := enclosing_repository(path)):
        root, inner = enclosing
        if has_folder(root, revision, inner):
            path, folder = root, f"{inner}/{folder}".strip("/")
    if revision and not git_folder(path):
        raise PipelineError(f"--revision {revision}: {shown} is a plain folder, which has no revisions")
    return Request(location, path, revision, folder, _name(path, {path}))


def _name(path: Path, paths: set[Path]) -> str:
    """Return the last parts of `path`, as many as no other of the `paths` ends in."""
    for number in range(1, len(path.parts)):
        parts = path.parts[-number:]
        if sum(other.parts[-number:] == parts for other in paths) == 1:
            break
    return shown_path(os.fsencode("/".join(parts)).decode("utf-8", "surrogateescape"))


def open_source(request: Request, selection: Selection,
                scratch: Path) -> tuple[Source, Iterator[tuple[str, str, bytes]]]:
    """Return the requested source and an iterator over its files, (path, blob id, content), which reads or
    fetches at its first `next`.  `scratch`: where a folder may be made for it."""
    source = Source(repository=request.name)
    if request.path is None:
        return source, read_repository(request, selection, scratch, source)
    if git_dir := git_folder(request.path):
        return source, read_local(request, git_dir, selection, source)
    return source, read_plain_folder(request, selection, scratch, source)
