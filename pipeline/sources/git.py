"""A git repository: one commit's tree without contents, then the wanted contents in one batch."""
import contextlib
import os
import re
import select
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import git

from pipeline.errors import PipelineError, disk_mistake, first_line, redact, shown_path
from pipeline.progress import progress
from pipeline.sources.source import Source, find_license, local_path

REGULAR_FILE_MODES = ("100644", "100755")  # not 120000, a symbolic link, nor 160000, a submodule
ATTEMPTS, FIRST_DELAY_SECONDS = 4, 2
STALL_SECONDS = 300  # git reports progress all the time; a server that is silent for so long hangs
# What git says when trying again can help, as opposed to a wrong name or a missing right.
PASSING_FAULT = re.compile(
    r"early EOF|RPC failed|hung up|timed out|reset by peer|Connection refused|unexpected disconnect|"
    r"error: 5\d\d|error: 429|Operation too slow|Temporary failure|Empty reply", re.IGNORECASE)
# What it says where the server gives nothing by its identifier, but only branches and tags: protocol versions
# 0 and 1, and some servers at any.
NOT_BY_IDENTIFIER = re.compile(r"unadvertised object|not our ref")
# ... and where the server, or a local repository, is itself a partial clone.
LACKING = re.compile(r"could not fetch ([0-9a-f]{40,64}) from promisor remote")
BRANCHES_SHOWN = 10
CREDENTIAL_HELPER = ('!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
                     '"$PARSE_DATA_USER" "$PARSE_DATA_PASSWORD"; }; f')
GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",  # a missing right is an error, never a question
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1000",  # bytes a second; below it for a minute, the server hangs
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",  # PASSING_FAULT reads git's messages
}
# Set by git for its hooks and aliases: with them, git works on the repository that they name, not the clone.
GIT_BINDINGS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
                "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_SHALLOW_FILE", "GIT_NAMESPACE", "GIT_PREFIX",
                "GIT_CEILING_DIRECTORIES")


def split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """Return (url without user and password, environment that makes git use them all the same).

    The credentials live in the environment of the git processes alone: not in their arguments, which every
    user of the machine can read, nor in a configuration file, a message or anything that this script writes.
    Git asks for them where that server, and no other, wants them; the user's own helpers are left out, one of
    which might store them.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PipelineError(f"--repo_url {redact(url)}: is no URL ({error}); check the spelling") from None
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return url, {}
    server = parts.netloc.rpartition("@")[2]
    settings = [("credential.helper", ""),
                (f"credential.{parts.scheme}://{server}.helper", CREDENTIAL_HELPER)]
    return urlunsplit(parts._replace(netloc=server)), {
        **added_settings(settings), "PARSE_DATA_USER": unquote(parts.username or ""),
        "PARSE_DATA_PASSWORD": unquote(parts.password or "")}


def added_settings(settings: list[tuple[str, str]]) -> dict[str, str]:
    """Return the environment that gives git these settings behind those that it gives already."""
    count = os.environ.get("GIT_CONFIG_COUNT") or "0"
    if not count.isdecimal():
        raise PipelineError(f"GIT_CONFIG_COUNT={count}: is no number, which git refuses; correct or unset it")
    environment = {"GIT_CONFIG_COUNT": str(int(count) + len(settings))}
    for number, (key, value) in enumerate(settings, start=int(count)):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environment


def git_url(location: str) -> str:
    """Return the URL of a repository; a local one gets a file:// URL: it is copied as a remote one is."""
    path = local_path(location)
    return path.resolve().as_uri() if path else location


def is_git_repository(path: Path) -> bool:
    """Return whether the folder is the root of a repository, bare or not."""
    return (path / ".git").exists() or ((path / "HEAD").is_file() and (path / "objects").is_dir())


def run_git(repo: Any, arguments: list[str], stdin: IO | None = None, show_progress: bool = False) -> str:
    """Run one long git command, killed with all its children if this process is interrupted.

    Returns its messages.  Raises PipelineError with git's own last words if it fails.
    """
    process = repo.git.execute([git.Git.GIT_PYTHON_GIT_EXECUTABLE, *arguments], as_process=True,
                               istream=stdin, start_new_session=True)
    messages: list[str] = []
    try:
        with progress(desc="fetching", bar_format="{desc}", shown=show_progress) as bar:
            pending = b""
            while chunk := read_or_stall(process.stderr.fileno()):
                *lines, pending = re.split(rb"[\r\n]", pending + chunk)
                for line in (raw.decode("utf-8", "replace").strip() for raw in lines):
                    if re.search(r"\d+% \(", line):
                        bar.set_description_str(line)
                    elif line:
                        messages.append(line)
            messages += [pending.decode("utf-8", "replace").strip()] if pending.strip() else []
        code = process.proc.wait()
    finally:
        if process.proc.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.proc.pid, 9)
            process.proc.wait()
    if code != 0:
        errors = [m for m in messages if m.startswith(("fatal:", "error:", "remote:", "ERROR:"))] or messages
        errors = [m for m in errors if LACKING.search(m)][:1] or errors[-3:]  # the others follow from it
        raise PipelineError(redact("git: " + ("; ".join(errors) or f"ended with code {code}")))
    return "\n".join(messages)


def read_or_stall(descriptor: int) -> bytes:
    """Return what git says next, b"" at the end; PipelineError where it says nothing for STALL_SECONDS."""
    if not select.select([descriptor], [], [], STALL_SECONDS)[0]:
        raise PipelineError(f"git: timed out, the server sent nothing for {STALL_SECONDS} s")
    return os.read(descriptor, 4096)


def with_retries(attempt: Any, what: str) -> Any:
    """Return `attempt()`, tried again with growing pauses while a passing fault of the network fails it."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except PipelineError as error:
            if number == ATTEMPTS or not PASSING_FAULT.search(str(error)):
                raise
            delay = FIRST_DELAY_SECONDS * 2 ** (number - 1)
            print(f"{what}: {error}; trying again in {delay} s ({number} of {ATTEMPTS - 1})", file=sys.stderr)
            time.sleep(delay)


@contextlib.contextmanager
def short_commands(name: str) -> Iterator[None]:
    """Turn what GitPython raises where a command of the block fails into a PipelineError with git's words."""
    try:
        yield
    except git.exc.CommandError as error:
        if disk_mistake(error):
            raise
        words = re.findall(r"(?:fatal|error): [^\n]*", str(error.stderr)) or [first_line(error)]
        raise PipelineError(f"--repo_url {name}: git: {redact(words[-1].rstrip(chr(39)))}; check your git "
                            "settings (git config --list) and the GIT_ variables") from None


def make_clone(location: str, folder: Path) -> Any:
    """Return the empty repository in `folder`, as git.Repo, with the remote `origin`."""
    url, secret_environment = split_credentials(git_url(location))
    try:
        git.Git.check_unsafe_protocols(url)
    except git.exc.UnsafeProtocolError:
        raise PipelineError(f"--repo_url {redact(location)}: this protocol is not allowed; use https, ssh, "
                            "git or file") from None
    repo = git.Repo.init(folder.absolute(), bare=True, expand_vars=False)
    # GIT_DIR: with safe.bareRepository=explicit, git uses no bare repository that it merely stands in
    repo.git.update_environment(**GIT_ENVIRONMENT, **secret_environment, GIT_DIR=str(folder.absolute()))
    if not any(os.environ.get(name) for name in ("GIT_SSH_COMMAND", "GIT_SSH")) \
            and not repo.git.config("--get", "core.sshCommand", with_exceptions=False):
        repo.git.update_environment(GIT_SSH_COMMAND="ssh -oBatchMode=yes")
    repo.create_remote("origin", url)
    if local_path(location):
        # A local repository serves what is asked for and no more, whatever its settings: in one that is a
        # partial clone, a content that nobody wants may be missing.
        serve = [git.Git.GIT_PYTHON_GIT_EXECUTABLE, "-c", "uploadpack.allowFilter=true", "-c",
                 "uploadpack.allowAnySHA1InWant=true", "upload-pack"]
        repo.git.config("remote.origin.uploadpack", shlex.join(serve))
    return repo


def fetch_tree(location: str, revision: str | None, folder: Path, filtered: bool = True) -> tuple[Any, str]:
    """Fetch one commit into `folder`, without file contents where `filtered`; return (git.Repo, commit
    identifier)."""
    name = shown_path(redact(location))
    if git_url(location).startswith("-") or (revision or "").startswith("-"):
        raise PipelineError(f"--repo_url {name}: a URL or revision cannot start with '-'")
    repo = make_clone(location, folder)

    def attempt() -> str:
        without = ["--filter=blob:none"] if filtered else []
        return run_git(repo, ["fetch", "--progress", "--depth=1", "--no-tags", *without, "origin",
                              revision or "HEAD"], show_progress=True)

    try:
        messages = with_retries(attempt, name)
    except PipelineError as error:
        raise explained(str(error), repo, name, revision) from None
    if "filtering not recognized" in messages:
        print(f"{name}: the server cannot leave out file contents; all files of the commit were fetched",
              file=sys.stderr)
    return repo, repo.git.rev_parse("FETCH_HEAD^{commit}")


def explained(error: str, repo: Any, name: str, revision: str | None) -> PipelineError:
    """Return what is to be said where the fetch of a commit failed with git's message `error`."""
    unknown = "couldn't find remote ref" in error
    if unknown and revision in (None, "HEAD"):
        branches = branch_names(repo)
        if not branches:
            return PipelineError(f"--repo_url {name}: the repository is empty (it has no commit)")
        return PipelineError(f"--repo_url {name}: its HEAD names a branch that does not exist; choose one of "
                             f"its branches with --revision: {branches}")
    if revision and (unknown or "not our ref" in error):
        branches = branch_names(repo)
        return PipelineError(f"--revision {revision}: {name} has no such branch, tag or commit"
                             + (f"; its branches: {branches}" if branches else ""))
    if revision and NOT_BY_IDENTIFIER.search(error):
        return PipelineError(f"--revision {revision}: {name} gives branches and tags alone, no commit by its "
                             "identifier; name one of them, or let git use version 2 of its protocol (git "
                             f"config protocol.version); its branches: {branch_names(repo)}")
    if LACKING.search(error):
        return lacking(name, "what its commit consists of")
    return PipelineError(f"--repo_url {name}: {error}; check the address, the network and your rights")


def lacking(name: str, what: str) -> PipelineError:
    """Return what is to be said of a source that is itself a partial clone and lacks what is wanted."""
    return PipelineError(f"--repo_url {name}: is a partial clone and lacks {what}; name the repository that "
                         "it was cloned from, or check the commit out in it, which fetches what is missing")


def branch_names(repo: Any) -> str:
    """Return the names of the remote's branches, or the first of many, for a message."""
    listing = repo.git.ls_remote("--heads", "origin", kill_after_timeout=STALL_SECONDS)
    names = [shown_path(line.partition("refs/heads/")[2]) for line in listing.splitlines()]
    more = len(names) - BRANCHES_SHOWN
    return ", ".join(names[:BRANCHES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def list_tree(repo: Any, commit: str) -> list[tuple[str, str, str]]:
    """Return (mode, blob id, path) of everything in the commit's tree, in the order of the paths' bytes.

    A path that is not UTF-8 carries its bytes as surrogate escapes, as Python's file functions do.
    """
    listing = repo.git.ls_tree("-r", "-z", "--full-tree", commit, stdout_as_string=False)
    rows = (entry.partition(b"\t") for entry in listing.split(b"\0") if entry)
    return [(*head.decode().split()[0:3:2], path.decode("utf-8", "surrogateescape"))
            for head, _, path in rows]


def fetch_blobs(repo: Any, wanted: dict[str, str], name: str, folder: Path) -> None:
    """Fetch those of the `wanted` blobs ({identifier: path}) that the first fetch left out, in one batch.
    PipelineError, with git's words, where that fails."""
    listing = repo.git.rev_list("--objects", "--all", "FETCH_HEAD", "--missing=print", "--no-object-names")
    missing = wanted.keys() & {line[1:] for line in listing.splitlines() if line.startswith("?")}
    if not missing:
        return
    names = folder / "wanted"
    names.write_text("".join(f"{blob}\n" for blob in sorted(missing)), encoding="ascii")

    def attempt() -> None:
        with open(names, "rb") as stdin:
            # What promisor fetches of git itself use: no negotiation, the named objects and nothing else.
            run_git(repo, ["-c", "fetch.negotiationAlgorithm=noop", "fetch", "origin", "--progress",
                           "--no-tags", "--no-write-fetch-head", "--recurse-submodules=no",
                           "--filter=blob:none", "--stdin"], stdin=stdin, show_progress=True)

    try:
        with_retries(attempt, name)
    except PipelineError as error:
        found = LACKING.search(str(error))
        if found:
            raise lacking(name, f"the content of {shown_path(wanted.get(found[1], found[1]))}") from None
        advice = "run the same command again" if PASSING_FAULT.search(str(error)) else \
            "check the repository (git fsck) and your rights"
        raise PipelineError(f"--repo_url {name}: {error}; {advice}") from None


def fetch_files(location: str, revision: str | None, extensions: tuple[str, ...], folder: Path,
                source: Source) -> tuple[Any, list[tuple[str, str]]]:
    """Fetch one commit's wanted files into `folder`; return (git.Repo, [(blob id, path)] by path)."""
    name = shown_path(redact(location))
    for filtered in (True, False):
        repo, source.commit = fetch_tree(location, revision, folder / ("part" if filtered else "all"),
                                         filtered)
        entries = list_tree(repo, source.commit)
        source.license_file = find_license([path for _, _, path in entries])
        wanted = [(mode, blob, path) for mode, blob, path in entries if path.endswith(extensions)]
        source.skipped["not a regular file"] = [shown_path(path) for mode, _, path in wanted
                                                if mode not in REGULAR_FILE_MODES]
        files = [(blob, path) for mode, blob, path in wanted if mode in REGULAR_FILE_MODES]
        try:
            fetch_blobs(repo, dict(files), name, folder)
            break
        except PipelineError as error:
            repo.close()
            if not filtered or not NOT_BY_IDENTIFIER.search(str(error)):
                raise
            print(f"{name}: the server gives no file contents by their identifiers; all files of the commit "
                  "are fetched", file=sys.stderr)
    return repo, files


def read_repository(location: str, revision: str | None, extensions: tuple[str, ...], folder: Path,
                    source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files of a git repository, in the order of the paths."""
    folder.mkdir()
    with short_commands(shown_path(redact(location))):
        repo, files = fetch_files(location, revision, extensions, folder, source)
        try:
            source.files = len(files)
            source.received_bytes = sum(p.stat().st_size for p in folder.glob("*/objects/**/*")
                                        if p.is_file())
            for blob, path in files:
                yield path, blob, repo.git.get_object_data(blob)[3]
        finally:
            repo.close()  # ends its cat-file processes
