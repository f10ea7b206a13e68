"""Stage 1 of 5: collect the source files of one or more code bases.

Reads   --repo_url                                git repositories (URL, file:// URL, local) or plain folders
Writes  data/kotlin_code_raw.jsonl                {"file_text": str}, one line a file
        data/kotlin_code_raw.provenance.jsonl     where each line came from, line by line
        data/kotlin_code_raw.manifest.json        what was asked for, found, skipped and why

Only the newest tree and only the wanted files cross the wire: a shallow fetch without file contents, then
one batch of the contents that are wanted.  They are read from git's object store: nothing is checked out, so
no symbolic link is followed, no filter or hook runs and line ends are those of the commit.  The clone lives
in a folder that this script makes and removes, whatever happens.

Memory: one file at a time, and about 200 bytes for each path.  Time: about 0.1 ms a file after the fetch.

Run:    python parse_data.py
Quick:  python parse_data.py --repo_url path/to/repository --output_file data/own_raw.jsonl
"""
import argparse
import contextlib
import hashlib
import json
import os
import re
import select
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline_io import (
    TEMPORARY,
    PipelineError,
    atomic_file,
    duration,
    is_ours,
    manifest_path,
    output_lock,
    positive_int,
    redact,
    remove_folder,
    run_stage,
    sha256_file,
    sweep_leftovers,
    write_manifest,
)

CLONE_MARKER = ".parse_data_clone"
REGULAR_FILE_MODES = ("100644", "100755")  # not 120000, a symbolic link, nor 160000, a submodule
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
LICENSE_NAME = re.compile(r"(un)?licen[sc]e|copying", re.IGNORECASE)
ATTEMPTS, FIRST_DELAY_SECONDS = 4, 2
STALL_SECONDS = 300  # git reports progress all the time; a server that is silent for so long hangs
# What git says when trying again can help, as opposed to a wrong name or a missing right.
PASSING_FAULT = re.compile(
    r"early EOF|RPC failed|hung up|timed out|reset by peer|Connection refused|unexpected disconnect|"
    r"error: 5\d\d|error: 429|Operation too slow|Temporary failure|Empty reply", re.IGNORECASE)
CREDENTIAL_HELPER = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$PARSE_DATA_USER" "$PARSE_DATA_PASSWORD"; }; f'
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
# Set by git for its hooks and aliases: with them, git works on the repository that they name and not on the clone.
GIT_BINDINGS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
                "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_SHALLOW_FILE", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_CEILING_DIRECTORIES")


@dataclass
class Source:
    """One code base: where it came from and what became of its files."""
    repository: str
    commit: str | None = None
    license_file: str | None = None
    files: int = 0
    received_bytes: int = 0
    kept: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason -> paths
    duplicates: list[str] = field(default_factory=list)  # kept all the same


# ---------------------------------------------------------------------------------------------------------------
# One file
# ---------------------------------------------------------------------------------------------------------------

def decode_source(data: bytes, max_file_bytes: int) -> tuple[str | None, str | None]:
    """Return (text, None), or (None, reason) for a file that cannot serve.  BOM dropped, line ends made LF."""
    if len(data) > max_file_bytes:
        return None, "larger than --max_file_bytes"
    if data.startswith(LFS_POINTER):
        return None, "LFS pointer"
    if b"\0" in data:
        return None, "NUL bytes"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text, None) if text.strip() else (None, "empty")


def blob_id(data: bytes) -> str:
    """Return git's SHA-1 name for the content `data`."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def shown_path(path: str) -> str:
    """Return a path as text that can be written: bytes that are not UTF-8 read \\xNN."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def find_license(paths: list[str]) -> str | None:
    """Return the repository's own licence file: at the root, else in a folder named `license`."""
    for folder in ("", "license/", "licence/", "licenses/"):
        names = [p for p in paths if p.lower().startswith(folder) and "/" not in p[len(folder):]]
        found = sorted((p for p in names if LICENSE_NAME.match(p[len(folder):])),
                       key=lambda p: (not LICENSE_NAME.match(p[len(folder):])[0].lower().startswith("licen"), p))
        if found:
            return shown_path(found[0])
    return None


# ---------------------------------------------------------------------------------------------------------------
# A git repository
# ---------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def clone_folder(path: Path) -> Iterator[Path]:
    """Make the folder `path` for this run and remove it afterwards, whatever happens.

    A folder that carries our marker was left by a killed run and is swept.  Anything else that exists at `path`
    is not ours: PipelineError, and it is not touched.  The folder gets its marker before it gets its name, and loses
    the name first: whenever the run is killed, what is left is known for ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}{TEMPORARY}-"
    temporary = path.with_name(f"{prefix}{os.getpid()}")
    if path.is_dir() and not path.is_symlink() and (path / CLONE_MARKER).is_file():
        if _process_alive((path / CLONE_MARKER).read_text()):
            raise PipelineError(f"--clone_path {path}: another run is using it; wait for it or choose another path")
        os.rename(path, temporary)
        remove_folder(temporary, CLONE_MARKER)
        print(f"removed {path}, left by a run that was killed", file=sys.stderr)
    for left in list(path.parent.iterdir()):
        named = left.name.startswith(prefix) and left.is_dir() and not left.is_symlink()
        if named and not _process_alive(left.name[len(prefix):]) and is_ours(left, CLONE_MARKER):
            remove_folder(left, CLONE_MARKER)
    temporary.mkdir(mode=0o700)
    try:
        (temporary / CLONE_MARKER).write_text(str(os.getpid()))
        if path.exists() or path.is_symlink():
            raise PipelineError(f"--clone_path {path}: exists already and will not be deleted; move it away or choose another path")
        os.rename(temporary, path)
        try:
            yield path
        finally:
            os.rename(path, temporary)
    finally:
        if temporary.exists():
            remove_folder(temporary, CLONE_MARKER)


def _process_alive(pid: str) -> bool:
    if not pid.strip().isdigit():
        return False  # killed before the number was written
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """Return (url without user and password, environment that makes git use them all the same).

    The credentials live in the environment of the git processes alone: not in their arguments, which every user of the
    machine can read, nor in a configuration file, a message or anything that this script writes.  Git asks for them
    where that server, and no other, wants them; the user's own helpers are left out, one of which might store them.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return url, {}
    server = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=server)), {
        "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "credential.helper", "GIT_CONFIG_VALUE_0": "",
        "GIT_CONFIG_KEY_1": f"credential.{parts.scheme}://{server}.helper", "GIT_CONFIG_VALUE_1": CREDENTIAL_HELPER,
        "PARSE_DATA_USER": unquote(parts.username or ""), "PARSE_DATA_PASSWORD": unquote(parts.password or "")}


def git_url(location: str) -> str:
    """Return the URL of a repository; a local one gets a file:// URL, so that it is copied as a remote one is."""
    path = Path(location).expanduser()
    return path.resolve().as_uri() if path.is_dir() else location


def is_git_repository(path: Path) -> bool:
    """Return whether the folder is the root of a repository, bare or not."""
    return (path / ".git").exists() or ((path / "HEAD").is_file() and (path / "objects").is_dir())


def run_git(repo: Any, arguments: list[str], stdin: IO | None = None, show_progress: bool = False) -> str:
    """Run one long git command, killed with all its children if this process is interrupted.

    Returns its messages.  Raises PipelineError with git's own last words if it fails.
    """
    from tqdm import tqdm

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
    """Return `attempt()`, tried again with growing pauses while it fails from a passing fault of the network."""
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
    import git

    url, secret_environment = split_credentials(git_url(location))
    try:
        git.Git.check_unsafe_protocols(url)
    except git.exc.UnsafeProtocolError:
        raise PipelineError(f"--repo_url {redact(location)}: this protocol is not allowed; use https, ssh, git or file") from None
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
        raise PipelineError(f"--repo_url {name}: {error}; check the address, the network and your rights") from None
    if "filtering not recognized" in messages and not Path(location).is_dir():
        print(f"{name}: the server cannot leave out file contents; all files of the commit were fetched", file=sys.stderr)
    return repo, repo.git.rev_parse("FETCH_HEAD^{commit}")


def list_tree(repo: Any, commit: str) -> list[tuple[str, str, str]]:
    """Return (mode, blob id, path) of everything in the commit's tree, in the order of the paths' bytes.

    A path that is not UTF-8 carries its bytes as surrogate escapes, as Python's file functions do.
    """
    listing = repo.git.ls_tree("-r", "-z", "--full-tree", commit, stdout_as_string=False)
    rows = (entry.partition(b"\t") for entry in listing.split(b"\0") if entry)
    return [(*head.decode().split()[0:3:2], path.decode("utf-8", "surrogateescape")) for head, _, path in rows]


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
            run_git(repo, ["-c", "fetch.negotiationAlgorithm=noop", "fetch", "origin", "--progress", "--no-tags",
                           "--no-write-fetch-head", "--recurse-submodules=no", "--filter=blob:none", "--stdin"],
                    stdin=stdin, show_progress=True)
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
        source.skipped["not a regular file"] = [shown_path(path) for mode, _, path in wanted if mode not in REGULAR_FILE_MODES]
        wanted = [(blob, path) for mode, blob, path in wanted if mode in REGULAR_FILE_MODES]
        fetch_blobs(repo, {blob for blob, _ in wanted}, source.repository, folder)
        source.files = len(wanted)
        source.received_bytes = sum(p.stat().st_size for p in (folder / "objects").rglob("*") if p.is_file())
        for blob, path in wanted:
            yield path, blob, repo.git.get_object_data(blob)[3]
    finally:
        repo.close()  # ends its cat-file processes


# ---------------------------------------------------------------------------------------------------------------
# A plain folder
# ---------------------------------------------------------------------------------------------------------------

def read_plain_folder(root: Path, extensions: tuple[str, ...], folder: Path,
                      source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, blob id, content) of the wanted files below `root`, less what its .gitignore files name."""
    import git

    repo = git.Repo.init(folder)
    listing = repo.git.execute(["git", f"--git-dir={repo.git_dir}", f"--work-tree={root}", "ls-files", "-z", "--others",
                                "--exclude-standard", "--full-name"], stdout_as_string=False, env=GIT_ENVIRONMENT)
    repo.close()
    paths = [os.fsdecode(p) for p in sorted(listing.split(b"\0")) if p]
    source.license_file = find_license(paths)
    wanted = [p for p in paths if p.endswith(extensions)]
    regular = {p for p in wanted if stat.S_ISREG(os.lstat(root / p).st_mode)}
    source.skipped["not a regular file"] = [shown_path(p) for p in wanted if p not in regular]
    wanted = [p for p in wanted if p in regular]
    source.files = len(wanted)
    for path in wanted:
        with open(os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            data = file.read()
        source.received_bytes += len(data)
        yield path, blob_id(data), data


# ---------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------

def write_source(source: Source, files: Iterator[tuple[str, str, bytes]], args: argparse.Namespace, seen: set[bytes],
                 raw: IO, provenance: IO) -> None:
    """Write one line to `raw` and one to `provenance` for each file that can serve; count the others in `source`."""
    from tqdm import tqdm

    for path, blob, data in tqdm(files, desc=source.repository.rsplit("/", 1)[-1], unit=" files", disable=None):
        text, reason = decode_source(data, args.max_file_bytes)
        if reason:
            source.skipped.setdefault(reason, []).append(shown_path(path))
            continue
        if bytes.fromhex(blob) in seen:
            source.duplicates.append(shown_path(path))
        seen.add(bytes.fromhex(blob))
        source.kept += 1
        json.dump({"file_text": text}, raw, ensure_ascii=False)
        json.dump({"repository": source.repository, "commit": source.commit, "path": shown_path(path), "blob": blob,
                   "license_file": source.license_file}, provenance, ensure_ascii=False)
        raw.write("\n")
        provenance.write("\n")


def open_source(location: str, args: argparse.Namespace, folder: Path) -> tuple[Source, Iterator[tuple[str, str, bytes]]]:
    """Return the source at `location` and the iterator over its files, which fetches when it is first asked."""
    extensions = tuple(e if e.startswith(".") else f".{e}" for e in args.extensions)
    path = Path(location).expanduser()
    if path.exists() and not path.is_dir():
        raise PipelineError(f"--repo_url {location}: is a file; name a repository or a folder")
    if path.is_dir() and not is_git_repository(path):
        if args.revision:
            raise PipelineError(f"--revision {args.revision}: {location} is a plain folder, which has no revisions")
        source = Source(repository=path.resolve().name)
        return source, read_plain_folder(path.resolve(), extensions, folder, source)
    if not path.exists() and "://" not in location and ":" not in location:
        raise PipelineError(f"--repo_url {location}: no such folder, and not a URL; check the spelling")
    source = Source(repository=path.resolve().name if path.is_dir() else redact(location))
    return source, read_repository(location, args.revision, extensions, folder, source)


def parse_data(args: argparse.Namespace) -> None:
    """Collect the files of every --repo_url into --output_file, its provenance and its manifest."""
    started = time.time()
    try:
        import git  # noqa: F401  # GitPython fails at import where the git program is missing
    except ImportError as error:
        raise PipelineError(f"git cannot be used ({str(error).splitlines()[0]}); install git") from None
    for name in GIT_BINDINGS:
        os.environ.pop(name, None)

    output = args.output_file
    provenance_file = output.with_name(f"{output.stem}.provenance.jsonl")
    if output.is_dir():
        raise PipelineError(f"--output_file {output}: is a folder; name a file")
    sources: list[Source] = []
    seen: set[bytes] = set()
    with output_lock(output), clone_folder(args.clone_path) as clone:
        for path in (provenance_file, manifest_path(output)):  # the lock on the raw file is on all three
            sweep_leftovers(path)
        with atomic_file(output) as raw, atomic_file(provenance_file) as provenance:
            for number, location in enumerate(args.repo_url):
                source, files = open_source(location, args, clone / str(number))
                with contextlib.closing(files):
                    write_source(source, files, args, seen, raw, provenance)
                sources.append(source)
                if source.kept == 0:
                    raise PipelineError(f"--repo_url {source.repository}: no usable file ending in {' or '.join(args.extensions)} "
                                        f"(found {source.files}); check --extensions")
            outputs = {}
            for path, file in ((output, raw), (provenance_file, provenance)):
                file.flush()
                outputs[path.name] = sha256_file(Path(file.name))
            # The manifest goes into place first: it describes neither what was there before nor a mixture of two runs,
            # so that a run that is killed before the other two follow is noticed by the next stage.
            write_manifest(manifest_path(output), args, outputs, started, sources=[vars(source) for source in sources],
                           counts=count(sources))
    report(sources, output, started)


def count(sources: list[Source]) -> dict[str, int]:
    """Return {kept, duplicates (kept all the same), skipped: REASON} summed over the sources."""
    total = Counter({"kept": 0, "kept, duplicate of an earlier file": 0})
    for source in sources:
        total["kept"] += source.kept
        total["kept, duplicate of an earlier file"] += len(source.duplicates)
        total.update({f"skipped, {reason}": len(paths) for reason, paths in source.skipped.items() if paths})
    return dict(total)


def report(sources: list[Source], output: Path, started: float) -> None:
    """Print what was found, skipped and written."""
    for source in sources:
        print(f"{source.repository}: commit {source.commit or '(plain folder)'}, {source.received_bytes / 1e6:.1f} MB received, "
              f"licence {source.license_file or 'NOT FOUND: check that you may use this code'}")
    for name, number in count(sources).items():
        print(f"  {number:>8,} {name}")
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) in {duration(time.time() - started)}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo_url", nargs="+", default=["https://github.com/JetBrains/kotlin.git"],
                        help="one or more code bases: a URL, a file:// URL, a local git repository (its last commit is "
                             "read, not its working tree) or a plain folder (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit to read (default: the repository's HEAD)")
    parser.add_argument("--clone_path", type=Path, default=Path("/tmp/kotlin_repo"),  # noqa: S108  # the contract's path; made with mode 0700, refused if it exists
                        help="folder for the clone; must not exist, is removed at the end (default: %(default)s)")
    parser.add_argument("--extensions", nargs="+", default=[".kt"], help="endings of the wanted files (default: %(default)s)")
    parser.add_argument("--max_file_bytes", type=positive_int, default=1_000_000,
                        help="skip larger files, in bytes (default: %(default)s)")
    parser.add_argument("--output_file", type=Path, default=Path("data/kotlin_code_raw.jsonl"),
                        help="the raw file (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(parse_data, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
