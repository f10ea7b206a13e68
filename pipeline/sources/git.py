"""A git repository: one commit's tree without contents, then the wanted contents in one batch."""
import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import git
from tqdm import tqdm

from pipeline.errors import PipelineError, redact
from pipeline.sources.source import Source, find_license, shown_path

REGULAR_FILE_MODES = ("100644", "100755")  # not 120000, a symbolic link, nor 160000, a submodule
ATTEMPTS, FIRST_DELAY_SECONDS = 4, 2
STALL_SECONDS = 300  # git reports progress all the time; a server that is silent for so long hangs
# What git says when trying again can help, as opposed to a wrong name or a missing right.
PASSING_FAULT = re.compile(
    r"early EOF|RPC failed|hung up|timed out|reset by peer|Connection refused|unexpected disconnect|"
    r"error: 5\d\d|error: 429|Operation too slow|Temporary failure|Empty reply", re.IGNORECASE)
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
    path = Path(location).expanduser()
    return path.resolve().as_uri() if path.is_dir() else location


def is_git_repository(path: Path) -> bool:
    """Return whether the folder is the root of a repository, bare or not."""
    return (path / ".git").exists() or ((path / "HEAD").is_file() and (path / "objects").is_dir())


def run_git(repo: Any, arguments: list[str], stdin: IO | None = None, show_progress: bool = False) -> str:
    """Run one long git command, killed with all its children if this process is interrupted.

    Returns its messages.  Raises PipelineError with git's own last words if it fails.
    """
    process = repo.git.execute(["git", *arguments], as_process=True, istream=stdin, start_new_session=True)
    messages: list[str] = []
    try:
        with tqdm(desc="fetching", bar_format="{desc}", disable=not show_progress or None) as bar:
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
        raise PipelineError(redact("git: " + ("; ".join(errors[-3:]) or f"ended with code {code}")))
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


def fetch_tree(location: str, revision: str | None, folder: Path) -> tuple[Any, str]:
    """Fetch one commit without file contents into `folder`; return (git.Repo, commit identifier)."""
    url, secret_environment = split_credentials(git_url(location))
    try:
        git.Git.check_unsafe_protocols(url)
    except git.exc.UnsafeProtocolError:
        raise PipelineError(f"--repo_url {redact(location)}: this protocol is not allowed; use https, ssh, "
                            "git or file") from None
    if url.startswith("-") or (revision or "").startswith("-"):
        raise PipelineError(f"--repo_url {redact(location)}: a URL or revision cannot start with '-'")
    repo = git.Repo.init(folder, bare=True)
    repo.git.update_environment(**GIT_ENVIRONMENT, **secret_environment,
                                GIT_SSH_COMMAND=os.environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"))
    repo.create_remote("origin", url)
    name = redact(location)

    def attempt() -> str:
        return run_git(repo, ["fetch", "--progress", "--depth=1", "--no-tags", "--filter=blob:none", "origin",
                              revision or "HEAD"], show_progress=True)

    try:
        messages = with_retries(attempt, name)
    except PipelineError as error:
        if "couldn't find remote ref HEAD" in str(error):
            raise PipelineError(f"--repo_url {name}: the repository is empty (it has no commit)") from None
        if "couldn't find remote ref" in str(error) or "not our ref" in str(error):
            raise PipelineError(f"--revision {revision}: {name} has no such branch, tag or commit") from None
        raise PipelineError(f"--repo_url {name}: {error}; check the address, the network and your "
                            "rights") from None
    if "filtering not recognized" in messages and not Path(location).is_dir():
        print(f"{name}: the server cannot leave out file contents; all files of the commit were fetched",
              file=sys.stderr)
    return repo, repo.git.rev_parse("FETCH_HEAD^{commit}")


def list_tree(repo: Any, commit: str) -> list[tuple[str, str, str]]:
    """Return (mode, blob id, path) of everything in the commit's tree, in the order of the paths' bytes.

    A path that is not UTF-8 carries its bytes as surrogate escapes, as Python's file functions do.
    """
    listing = repo.git.ls_tree("-r", "-z", "--full-tree", commit, stdout_as_string=False)
    rows = (entry.partition(b"\t") for entry in listing.split(b"\0") if entry)
    return [(*head.decode().split()[0:3:2], path.decode("utf-8", "surrogateescape"))
            for head, _, path in rows]


def fetch_blobs(repo: Any, wanted: set[str], name: str, folder: Path) -> None:
    """Fetch those of the `wanted` blobs that the first fetch left out, in one batch."""
    listing = repo.git.rev_list("--objects", "--all", "FETCH_HEAD", "--missing=print", "--no-object-names")
    missing = wanted & {line[1:] for line in listing.splitlines() if line.startswith("?")}
    if not missing:
        return
    names = folder / "wanted"
    names.write_text("".join(f"{blob}\n" for blob in sorted(missing)))

    def attempt() -> None:
        with open(names, "rb") as stdin:
            # What promisor fetches of git itself use: no negotiation, the named objects and nothing else.
            run_git(repo, ["-c", "fetch.negotiationAlgorithm=noop", "fetch", "origin", "--progress",
                           "--no-tags", "--no-write-fetch-head", "--recurse-submodules=no",
                           "--filter=blob:none", "--stdin"], stdin=stdin, show_progress=True)

    try:
        with_retries(attempt, name)
    except PipelineError as error:
        raise PipelineError(f"--repo_url {name}: {error}; run the same command again") from None


def read_repository(location: str, revision: str | None, extensions: tuple[str, ...], folder: Path,
                    source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files of a git repository, in the order of the paths."""
    folder.mkdir()
    repo, source.commit = fetch_tree(location, revision, folder)
    try:
        entries = list_tree(repo, source.commit)
        source.license_file = find_license([path for _, _, path in entries])
        wanted = [(mode, blob, path) for mode, blob, path in entries if path.endswith(extensions)]
        source.skipped["not a regular file"] = [shown_path(path) for mode, _, path in wanted
                                                if mode not in REGULAR_FILE_MODES]
        wanted = [(blob, path) for mode, blob, path in wanted if mode in REGULAR_FILE_MODES]
        fetch_blobs(repo, {blob for blob, _ in wanted}, source.repository, folder)
        source.files = len(wanted)
        source.received_bytes = sum(p.stat().st_size for p in (folder / "objects").rglob("*") if p.is_file())
        for blob, path in wanted:
            yield path, blob, repo.git.get_object_data(blob)[3]
    finally:
        repo.close()  # ends its cat-file processes
