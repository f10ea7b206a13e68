"""The submodules of a commit: which repositories and commits they are."""
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.run.errors import redact, shown_path
from pipeline.sources.selection import SUBMODULE_MODE, Entry
from pipeline.sources.source import Request, Source, local_path

DEEPEST = 10  # submodules of submodules


def address_of(url: str, base: str) -> str | None:
    """Return the URL of a submodule, `./` and `../` resolved against that of the repository that it is in, as
    git does; None where it names a place on this disk: no downloaded repository chooses what is read here."""
    relative = url.startswith(("./", "../"))
    if relative:
        base = base.rstrip("/")
        while url.startswith(("./", "../")):
            step, _, url = url.partition("/")
            if step == "..":
                base, _, _ = base.rpartition("/") if "/" in base else base.rpartition(":")
        url = f"{base}/{url}"
    if url.startswith(("-", "file:", "/", "~")) or local_path(url) or ":" not in url:
        return None
    return url


def listed_submodules(text: bytes, program: Any) -> dict[str, dict[str, str]]:
    """Return {path: {"name", "url"}} from the content of a .gitmodules, as git itself reads it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        listing = program.config("--file", file.name, "--no-includes", "-z", "--get-regexp",
                                 r"^submodule\..*\.(path|url)$", stdout_as_string=False,
                                 with_exceptions=False)
    modules: dict[str, dict[str, str]] = {}
    for setting in listing.split(b"\0"):
        key, _, value = setting.decode("utf-8", "surrogateescape").partition("\n")
        name, _, what = key.removeprefix("submodule.").rpartition(".")
        modules.setdefault(name, {"name": name})[what] = value
    return {module["path"]: module for module in modules.values() if {"path", "url"} <= module.keys()}


def submodule_requests(entries: list[Entry], read: Callable[[Entry], bytes], request: Request, source: Source,
                       program: Any, git_dir: Path | None = None) -> list[Request]:
    """Return requests for the submodules that `source` lists as skipped, and remove them from that list.

    One that was checked out in a repository on this disk, `git_dir`, is read from there; the others are
    fetched.  Those without an address, or with one on this disk, stay in the list.
    """
    left_out = set(source.skipped.get("submodule", ()))
    modules = next((entry for entry in entries if entry.path == ".gitmodules"), None)
    if not left_out or modules is None or request.depth >= DEEPEST:
        return []
    listed, requests = listed_submodules(read(modules), program), []
    origin = program.config("--get", "remote.origin.url", with_exceptions=False) if git_dir else ""
    for entry in entries:
        module = listed.get(entry.path)
        if entry.mode != SUBMODULE_MODE or shown_path(entry.path) not in left_out or not module:
            continue
        address = address_of(module["url"], origin or request.location)
        checked_out = _checked_out(git_dir, module["name"]) if git_dir else None
        if not (address or checked_out):
            continue
        name = redact(address) if address else f"{request.name}/{shown_path(entry.path)}"
        requests.append(Request(address or str(checked_out), checked_out, entry.blob, "", name,
                                request.depth + 1))
        source.skipped["submodule"].remove(shown_path(entry.path))
    return requests


def _checked_out(git_dir: Path, name: str) -> Path | None:
    """Return the repository of a submodule in that of its parent; None where it is not there.

    The name comes from a downloaded .gitmodules, so one that leads elsewhere is ignored.
    """
    parts = PurePosixPath(name).parts
    common = git_dir / "commondir"  # a worktree's repository
    if common.is_file():
        git_dir = git_dir / common.read_text(encoding="utf-8").strip()
    place = git_dir / "modules" / name
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or place.is_symlink():
        return None
    return place if (place / "HEAD").is_file() else None
