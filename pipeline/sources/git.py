"""A remote git repository: one commit's tree without contents, then the wanted contents in one batch."""
import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

import git

from pipeline.run.errors import PipelineError, disk_mistake, first_line, redact, shown_path
from pipeline.run.progress import progress
from pipeline.sources.licenses import Licenses
from pipeline.sources.objects import contents, list_tree
from pipeline.sources.selection import Entry, Selection
from pipeline.sources.source import Request, Source
from pipeline.sources.submodules import submodule_requests

ATTEMPTS, FIRST_DELAY_SECONDS = 4, 2
STALL_SECONDS = 300  # git reports progress continuously; a server silent for so long hangs
# Git's messages about temporary failures, as opposed to a wrong name or a missing permission.
TEMPORARY_FAILURE = re.compile(
    r"early EOF|RPC failed|hung up|timed out|reset by peer|Connection refused|unexpected disconnect|"
    r"error: 5\d\d|error: 429|Operation too slow|Temporary failure|Empty reply", re.IGNORECASE)
# Its messages where the server serves no objects by identifier, only branches and tags: protocol versions
# 0 and 1, and some servers always.
NOT_BY_IDENTIFIER = re.compile(r"unadvertised object|not our ref")
OTHER_NAMES = re.compile(r"mismatched algorithms")  # its identifiers are SHA-256, not SHA-1
SHORT_COMMIT = re.compile(r"[0-9a-f]{4,39}")
BRANCHES_SHOWN = 10
CREDENTIAL_HELPER = ('!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
                     '"$PARSE_DATA_USER" "$PARSE_DATA_PASSWORD"; }; f')
GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",  # a missing permission is an error, never a prompt
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1000",  # bytes per second; below it for a minute, the server hangs
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",  # TEMPORARY_FAILURE matches git's English messages
}
# Set by git for its hooks and aliases: with them, git works on the repository that they name, not the clone.
GIT_BINDINGS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
                "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_SHALLOW_FILE", "GIT_NAMESPACE", "GIT_PREFIX",
                "GIT_CEILING_DIRECTORIES")


def split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """Return (url without user and password, environment that makes git use them nevertheless).

    The credentials are only in the environment of the git processes: not in their arguments, which every user
    of the machine can read, nor in a configuration file, a message or anything that this script writes.  Git
    uses them for that server only; the user's own credential helpers are disabled, as one might store them.
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
    """Return the environment that adds these git settings to those that it sets already."""
    count = os.environ.get("GIT_CONFIG_COUNT") or "0"
    if not count.isdecimal():
        raise PipelineError(f"GIT_CONFIG_COUNT={count}: is no number, which git refuses; correct or unset it")
    environment = {"GIT_CONFIG_COUNT": str(int(count) + len(settings))}
    for number, (key, value) in enumerate(settings, start=int(count)):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environment


def run_git(repo: Any, arguments: list[str], stdin: IO | None = None, show_progress: bool = False) -> str:
    """Run one long git command, killed with all its children if this process is interrupted.

    Returns its messages.  Raises PipelineError with git's last messages if it fails.
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
                        bar.set_description_str(f"fetching: {line}", refresh=False)
                        bar.update(0)
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
        raise PipelineError(redact("git: " + ("; ".join(errors[-3:]) or f"ended with code {code}")))
    return "\n".join(messages)


def read_or_stall(descriptor: int) -> bytes:
    """Return git's next output, b"" at the end; PipelineError if there is none for STALL_SECONDS."""
    if not select.select([descriptor], [], [], STALL_SECONDS)[0]:
        raise PipelineError(f"git: timed out, the server sent nothing for {STALL_SECONDS} s")
    return os.read(descriptor, 4096)


def with_retries(attempt: Any, what: str) -> Any:
    """Return `attempt()`, retried with growing pauses after a temporary failure of the network."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except PipelineError as error:
            if number == ATTEMPTS or not TEMPORARY_FAILURE.search(str(error)):
                raise
            delay = FIRST_DELAY_SECONDS * 2 ** (number - 1)
            print(f"{what}: {error}; trying again in {delay} s ({number} of {ATTEMPTS - 1})", file=sys.stderr)
            time.sleep(delay)


@contextlib.contextmanager
def short_commands(name: str) -> Iterator[None]:
    """Turn GitPython's error about a failed command of the block into a PipelineError with git's message."""
    try:
        yield
    except git.exc.CommandError as error:
        if disk_mistake(error):
            raise
        words = re.findall(r"(?:fatal|error): [^\n]*", str(error.stderr)) or [first_line(error)]
        raise PipelineError(f"--repo_url {name}: git: {redact(words[-1].rstrip(chr(39)))}; check your git "
                            "settings (git config --list) and the GIT_ variables") from None


def make_clone(location: str, folder: Path, names: str = "sha1") -> Any:
    """Return the empty repository in `folder`, as git.Repo, with the remote `origin`; `names`: the algorithm
    of its identifiers."""
    url, secret_environment = split_credentials(location)
    try:
        git.Git.check_unsafe_protocols(url)
    except git.exc.UnsafeProtocolError:
        raise PipelineError(f"--repo_url {redact(location)}: this protocol is not allowed; use https, ssh, "
                            "git or file") from None
    more = {} if names == "sha1" else {"object_format": names}  # which a git before 2.29 does not know
    repo = git.Repo.init(folder.absolute(), bare=True, expand_vars=False, **more)
    # GIT_DIR: with safe.bareRepository=explicit, git uses no bare repository just because it is run there
    repo.git.update_environment(**GIT_ENVIRONMENT, **secret_environment, GIT_DIR=str(folder.absolute()))
    if not any(os.environ.get(name) for name in ("GIT_SSH_COMMAND", "GIT_SSH")) \
            and not repo.git.config("--get", "core.sshCommand", with_exceptions=False):
        repo.git.update_environment(GIT_SSH_COMMAND="ssh -oBatchMode=yes")
    repo.create_remote("origin", url)
    return repo


def fetch_tree(request: Request, folder: Path, filtered: bool = True, names: str = "sha1") -> tuple[Any, str]:
    """Fetch one commit into `folder`, without file contents where `filtered`; return (git.Repo, commit
    identifier)."""
    if request.location.startswith("-") or (request.revision or "").startswith("-"):
        raise PipelineError(f"--repo_url {request.shown}: a URL or revision cannot start with '-'")
    repo = make_clone(request.location, folder, names)

    def fetch(revision: str) -> str:
        without = ["--filter=blob:none"] if filtered else []
        return with_retries(lambda: run_git(repo, ["fetch", "--progress", "--depth=1", "--no-tags", *without,
                                                   "origin", revision], show_progress=True), request.shown)

    try:
        try:
            messages = fetch(request.revision or "HEAD")
        except PipelineError as error:
            whole = whole_commit(repo, request.revision)
            if not whole or "couldn't find remote ref" not in str(error):
                raise
            messages = fetch(whole)
    except PipelineError as error:
        if names == "sha1" and OTHER_NAMES.search(str(error)):
            repo.close()
            return fetch_tree(request, folder.with_name(f"{folder.name}-sha256"), filtered, "sha256")
        raise explained(str(error), repo, request.shown, request.revision) from None
    if "filtering not recognized" in messages:
        print(f"{request.shown}: the server cannot leave out file contents; all files of the commit were "
              "fetched", file=sys.stderr)
    return repo, repo.git.rev_parse("FETCH_HEAD^{commit}")


def whole_commit(repo: Any, revision: str | None) -> str | None:
    """Return the identifier of the one branch or tag of the remote whose commit begins with `revision`."""
    if not SHORT_COMMIT.fullmatch(revision or ""):
        return None
    listing = repo.git.ls_remote("origin", kill_after_timeout=STALL_SECONDS, with_exceptions=False)
    commits = {line.split()[0] for line in listing.splitlines() if line.startswith(revision)}
    return commits.pop() if len(commits) == 1 else None


def explained(error: str, repo: Any, name: str, revision: str | None) -> PipelineError:
    """Return the error to raise where the fetch of a commit failed with git's message `error`."""
    unknown = "couldn't find remote ref" in error or "invalid refspec" in error
    if unknown and revision in (None, "HEAD"):
        branches = branch_names(repo)
        if not branches:
            return PipelineError(f"--repo_url {name}: the repository is empty (it has no commit)")
        return PipelineError(f"--repo_url {name}: its HEAD names a branch that does not exist; choose one of "
                             f"its branches with --revision: {branches}")
    if revision and (unknown or "not our ref" in error):
        branches = branch_names(repo)
        other = ""
        if re.search(r"[~^:]|@\{", revision) or SHORT_COMMIT.fullmatch(revision):
            other = (" (a server knows a commit by its whole identifier alone, and nothing like HEAD~1; a "
                     "clone on this disk does)")
        return PipelineError(f"--revision {revision}: {name} has no such branch, tag or commit{other}"
                             + (f"; its branches: {branches}" if branches else ""))
    if revision and NOT_BY_IDENTIFIER.search(error):
        return PipelineError(f"--revision {revision}: {name} gives branches and tags alone, no commit by its "
                             "identifier; name one of them, or let git use version 2 of its protocol (git "
                             f"config protocol.version); its branches: {branch_names(repo)}")
    return PipelineError(f"--repo_url {name}: {error}; check the address, the network and your rights")


def branch_names(repo: Any) -> str:
    """Return the names of the remote's branches, or the first of many, for a message."""
    listing = repo.git.ls_remote("--heads", "origin", kill_after_timeout=STALL_SECONDS)
    return shown_names([line.partition("refs/heads/")[2] for line in listing.splitlines()])


def shown_names(names: list[str]) -> str:
    """Return names, or the first of many, for a message."""
    more = len(names) - BRANCHES_SHOWN
    return ", ".join(map(shown_path, names[:BRANCHES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def fetch_blobs(repo: Any, wanted: list[Entry], name: str, folder: Path) -> None:
    """Fetch those of the `wanted` blobs that the first fetch left out, in one batch.  PipelineError with
    git's message where that fails."""
    listing = repo.git.rev_list("--objects", "--all", "FETCH_HEAD", "--missing=print", "--no-object-names")
    missing = {entry.blob for entry in wanted} & {line[1:] for line in listing.splitlines()
                                                  if line.startswith("?")}
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
        advice = "run the same command again" if TEMPORARY_FAILURE.search(str(error)) else \
            "check the repository (git fsck) and your rights"
        raise PipelineError(f"--repo_url {name}: {error}; {advice}") from None


class Fetched(NamedTuple):
    """One commit of a remote repository, with the wanted contents."""
    repo: Any
    entries: list[Entry]
    wanted: list[Entry]
    licenses: Licenses


def fetch_files(request: Request, selection: Selection, folder: Path, source: Source) -> Fetched:
    """Fetch one commit's wanted files into `folder`."""
    for filtered in (True, False):
        repo, source.commit = fetch_tree(request, folder / ("part" if filtered else "all"), filtered)
        entries = list_tree(repo.git, source.commit)
        source.skipped = {}
        wanted = selection.choose(entries, request.folder, source)
        licenses = Licenses(entries, wanted, selection)
        more = [entry for files in licenses.files.values() for entry in files]
        more += [entry for entry in entries if entry.path == ".gitmodules" and selection.submodules]
        try:
            fetch_blobs(repo, wanted + more, request.shown, folder)
            break
        except PipelineError as error:
            repo.close()
            if not filtered or not NOT_BY_IDENTIFIER.search(str(error)):
                raise
            print(f"{request.shown}: the server gives no file contents by their identifiers; all files of "
                  "the commit are fetched", file=sys.stderr)
    return Fetched(repo, entries, wanted, licenses)


def read_repository(request: Request, selection: Selection, folder: Path,
                    source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files of a remote repository, by path."""
    folder.mkdir()
    with short_commands(request.shown):
        fetched = fetch_files(request, selection, folder, source)
        program = fetched.repo.git
        try:
            source.received_bytes = sum(p.stat().st_size for p in folder.glob("*/objects/**/*")
                                        if p.is_file())
            check_folder(request, fetched.entries, source)
            with contents(program) as store:
                def read(entry: Entry) -> bytes:
                    data = store.get(entry.blob)
                    if data is None:
                        raise PipelineError(f"--repo_url {request.shown}: the server did not send "
                                            f"{shown_path(entry.path)}; run the same command again")
                    return data

                if selection.submodules:
                    source.parts += submodule_requests(fetched.entries, read, request, source, program)
                wanted = fetched.licenses.apply(read, source)
                source.files = len(wanted)
                for entry in wanted:
                    yield entry.path, entry.blob, read(entry)
        finally:
            fetched.repo.close()


def check_folder(request: Request, entries: list[Entry], source: Source) -> None:
    """Raise PipelineError where the commit lacks the requested folder."""
    if request.folder and not any(entry.path.startswith(f"{request.folder}/") for entry in entries):
        raise PipelineError(f"--repo_url {request.shown}: its commit {source.commit} has no folder "
                            f"{shown_path(request.folder)}; check the name after the #")
