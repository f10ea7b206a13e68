"""What the five stages share about files: JSONL, atomic writes, locks, manifests, the hub, one-line errors.

A stage calls `run_stage` from its `main`, reads with `read_jsonl` or `load_examples`, and writes inside
`output_lock` with `atomic_file` or `atomic_folder`.  What it wrote is described by a manifest beside it
(`write_manifest`), which the next stage checks (`check_manifest`) and puts its own manifest on top of.

Memory: files are streamed line by line or in blocks of 1 MiB; nothing here grows with the size of a file.

Run:    python pipeline_io.py --lineage results                            where a table, model or data set comes from
        python pipeline_io.py --push models/merged OWNER/NAME              publish a folder in one commit
"""
import argparse
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

# A temporary name of ours: what a killed run leaves behind is recognised by it, and nothing else is swept.
TEMPORARY = ".pipeline-tmp"
# A folder under that name also holds this file, so that a user's folder of the same name is safe.
FOLDER_MARKER = ".pipeline-tmp-folder"
MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
RECORDED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers", "huggingface_hub",
                     "GitPython", "accelerate", "rapidfuzz", "datasketch", "numpy", "pandas")
MODEL_FILES = r".*\.(safetensors|json|txt|model|jinja)"  # of a model folder, those that are loaded; its card may be edited
BLOCK_BYTES = 1 << 20
EXIT_MISTAKE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143
# How a chat template gets from a value to Python's own objects.
HOSTILE_TEMPLATE = re.compile(r"__(class|base|bases|mro|subclasses|globals|init|builtins|import|code|getattribute)__|\\x5f|\|\s*attr\b")
HUB_PAUSES, LONGEST_PAUSE = (1, 2, 4, 8), 300  # seconds between the tries of a push; a hub that asks for more is not waited for
# Errors of the operating system that a user can mend; all others keep their traceback.
DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would exceed the file size limit: raise it (ulimit -f)",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EACCES: "permission denied: choose a place that you may read and write",
    errno.EPERM: "operation not permitted: choose a place that you may read and write",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "the path is a folder: choose another path",
}


class PipelineError(Exception):
    """A mistake that the user can mend; its one-line message says what, where, and what to do next."""


class Terminated(BaseException):
    """SIGTERM arrived.  Raised in the main thread so that every `finally` runs."""


# ---------------------------------------------------------------------------------------------------------------
# Running a stage
# ---------------------------------------------------------------------------------------------------------------

def run_stage(stage: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Print the settings, call `stage(args)`, and turn the user's mistakes into one line and an exit code.

    Exit codes: 0 done, 1 a mistake that the user can mend, 130 Ctrl-C, 143 SIGTERM.  A bug keeps its traceback.
    """
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else stage.__name__
    settings = ", ".join(f"{key}={value}" for key, value in public_arguments(args).items())
    arrived: list[int] = []

    def stop(signum: int, frame: object) -> None:
        arrived.append(signum)  # a library in another language may make some other error of what is raised here
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    try:
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the caller has it ignored
            signal.signal(signal.SIGINT, stop)
        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
            print(f"{name}: {settings}", file=sys.stderr, flush=True)
        stage(args)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, KeyboardInterrupt) or signal.SIGINT in arrived:
            _exit(name, "interrupted; no output was left half written", EXIT_INTERRUPTED)
        if isinstance(error, Terminated) or arrived:
            _exit(name, "terminated; no output was left half written", EXIT_TERMINATED)
        if isinstance(error, PipelineError):
            _exit(name, f"error: {error}", EXIT_MISTAKE)
        mistake = disk_mistake(error)
        if mistake is None:
            raise
        _exit(name, f"error: {mistake} and run the same command again", EXIT_MISTAKE)


def disk_mistake(error: BaseException) -> str | None:
    """Return what the user has to mend where an error is the disk's, else None.

    Libraries and programs in other languages pass an operating system's error on as text; torch.save leaves even that out.
    """
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return (f"{error.filename}: " if error.filename else "") + DISK_ERRORS[error.errno]
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        if os.strerror(code) in str(error):
            return DISK_ERRORS[code]
    if getattr(error, "status", None) == -signal.SIGXFSZ:  # a git that was ended by the limit
        return DISK_ERRORS[errno.EFBIG]
    if "inline_container" in str(error):
        return "a file could not be written in full: check the disk's free space, the quota, and the file size limit"
    return None


def _exit(name: str, message: str, code: int) -> None:
    sys.stdout.flush()
    print(f"{name}: {redact(' '.join(message.split()))}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def redact(text: str) -> str:
    """Return `text` without the user names and passwords of URLs and without Hugging Face tokens."""
    text = re.sub(r"(?<=://)[^/\s]+@", "***@", text)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}", "hf_***", text)


def public_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as plain JSON values, in order, with secrets removed."""
    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return redact(str(value)) if isinstance(value, (str, Path)) else value
    return {key: plain(value) for key, value in vars(args).items()}


def duration(seconds: float) -> str:
    """Return e.g. `4.2 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def quiet_libraries() -> None:
    """Keep the libraries' notes to developers off the user's screen; errors, warnings of ours and downloads are shown."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|bitsandbytes|torch)\b")


def fraction(text: str) -> float:
    """argparse type: a number from 0 up to, but not including, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def non_negative_int(text: str) -> int:
    """argparse type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


# ---------------------------------------------------------------------------------------------------------------
# Writing: nothing is replaced before what replaces it is complete and on the disk
# ---------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Hold the output at `path` for this process alone, and sweep what killed runs left beside it.

    Raises PipelineError where another process writes the same output.  The lock file stays (removing it
    would let two processes lock two different files of one name); the kernel drops the lock with the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(f"{path}: another process is writing this output; wait for it or choose another path") from None
        recover_folder(path)
        sweep_leftovers(path)
        yield


def sweep_leftovers(path: Path) -> None:
    """Remove the temporary files and folders that killed runs left for the output `path`, and say so."""
    for left in list(path.parent.iterdir()):
        if left.is_symlink() or not left.name.startswith(f".{path.name}{TEMPORARY}-"):
            continue
        if left.is_file():
            left.unlink()
        elif is_ours(left):
            remove_folder(left)
        else:
            continue
        print(f"removed {left.name}, left by a run that was killed", file=sys.stderr)


def is_ours(folder: Path, marker: str = FOLDER_MARKER) -> bool:
    """Return whether a folder under one of our temporary names was made by us: it holds our marker or a manifest, or nothing."""
    return (folder / marker).is_file() or (folder / MANIFEST).is_file() or not any(folder.iterdir())


def remove_folder(folder: Path, marker: str = FOLDER_MARKER) -> None:
    """Remove a folder of ours, its marker last: killed in between, it is still known for ours."""
    with contextlib.suppress(OSError):  # a full disk, which this is about to mend
        (folder / marker).touch()
    for path in folder.iterdir():
        if path.name == marker:
            continue
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            path.unlink()
    (folder / marker).unlink(missing_ok=True)
    folder.rmdir()


def _remove_tree(folder: Path) -> None:
    """Remove a folder in which a child process that a signal has orphaned, such as git, may still work for a moment."""
    for left in range(20, 0, -1):
        try:
            return shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or left == 1:
                raise
            time.sleep(0.1)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}-{os.getpid()}")


@contextlib.contextmanager
def atomic_file(path: Path, binary: bool = False) -> Iterator[IO]:
    """Yield a file to write; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") if binary else open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; it takes the place of the folder `path` when the block ends without an error.

    Raises PipelineError where `path` holds something that this pipeline did not write.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        (temporary / FOLDER_MARKER).touch()
        yield temporary
        (temporary / FOLDER_MARKER).unlink()
        _sync_tree(temporary)
        previous = _previous(path)
        if path.exists():
            os.rename(path, previous)
        os.rename(temporary, path)
        _sync_folder(path.parent)
        if previous.exists():
            with contextlib.suppress(OSError):  # the output is complete; the next run removes what is left
                remove_folder(previous)
    finally:
        if temporary.exists():
            remove_folder(temporary)


def check_replaceable(path: Path, holds: str | None = None) -> None:
    """Raise PipelineError unless the folder `path` is absent, empty, or was written by this pipeline and nobody else.

    `holds` names a file that every output of the calling stage holds: the output of another stage is not replaced.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise PipelineError(f"{path}: is not a folder; choose another output folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    foreign = _foreign_files(path)
    if foreign:
        raise PipelineError(f"{path}: holds files that this pipeline did not write ({foreign[0]}); choose another output folder")
    if holds and not (path / holds).is_file():
        raise PipelineError(f"{path}: is not an output of this script (it holds no {holds}); choose another output folder")


def _foreign_files(folder: Path) -> list[str]:
    """Return the files that the folder's manifest does not name; all of them where it has no manifest of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        manifest = None
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir() or p.is_symlink()]
    if not isinstance(manifest, dict) or "manifest_version" not in manifest or not isinstance(manifest.get("outputs"), dict):
        return names
    # datasets keeps what it computes from a data set in cache-*.arrow beside it
    return [n for n in names if n != MANIFEST and n not in manifest["outputs"] and not re.fullmatch(r"(.*/)?cache-[^/]*\.arrow", n)]


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.pipeline-previous")


def recover_folder(path: Path) -> None:
    """Finish what `atomic_folder` was doing when it was killed between its two renames, or behind them."""
    previous = _previous(path)
    if not previous.is_dir() or not is_ours(previous):
        return
    if path.exists() or not (previous / MANIFEST).is_file():
        remove_folder(previous)
    else:
        (previous / FOLDER_MARKER).unlink(missing_ok=True)
        os.rename(previous, path)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


# ---------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------

def read_jsonl(path: Path, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file one by one, each holding `fields` (name -> type).

    Raises PipelineError with the file and line number at the first line that is not such an object.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; run the stage that writes it first, or name another file")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_json_line(path, number, line, fields)


def parse_json_line(path: Path, number: int, line: bytes, fields: dict[str, type]) -> dict[str, Any]:
    """Return line `number` of `path` as an object that holds `fields`; PipelineError names what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise PipelineError(f"{path}, line {number}: not valid JSON; mend or remove the line, or write the file again") from None
    if not isinstance(row, dict):
        raise PipelineError(f"{path}, line {number}: not a JSON object; expected the fields {', '.join(fields)}")
    for field, kind in fields.items():
        if field not in row:
            raise PipelineError(f"{path}, line {number}: no field {field!r}; it has {', '.join(row) or 'no fields'}")
        if not isinstance(row[field], kind):
            raise PipelineError(f"{path}, line {number}: {field!r} is not of type {kind.__name__}")
        if kind is str and not _encodable(row[field]):
            raise PipelineError(f"{path}, line {number}: {field!r} holds a lone surrogate, which is not text")
    return row


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_examples(source: str, splits: Iterable[str], verify: bool = True) -> Any:
    """Return the `DatasetDict` of prompt/completion examples at `source`, a local folder or a hub data set.

    Raises PipelineError where it cannot be found or read, where one of `splits` or the columns `prompt` and
    `completion` are missing, and, for a folder, where a file differs from its manifest (`verify`).
    """
    import datasets

    folder = Path(source)
    if folder.exists() or looks_like_path(source):
        recover_folder(folder)
        if not (folder / "dataset_dict.json").is_file():
            raise PipelineError(f"{source}: no data set folder; run preprocess_data.py or name another --dataset")
        if verify:
            check_manifest(folder)
        try:
            data = datasets.load_from_disk(source)
        except IndexError as error:  # what datasets makes of a split without rows
            raise PipelineError(f"{source}: a split is empty; run preprocess_data.py on more files") from error
        except Exception as error:  # pyarrow and datasets raise many types for a damaged file
            raise PipelineError(f"{source}: cannot be read ({first_line(error)}); run preprocess_data.py again") from error
    else:
        with hub_errors("data set", source):
            hub_files(source, repo_type="dataset")
            try:
                data = datasets.load_dataset(source)
            except (ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
                raise PipelineError(f"data set {source}: cannot be loaded: {first_line(error)}") from error
    for split in splits:
        if split not in data:
            raise PipelineError(f"{source}: no split {split!r}; it has {', '.join(data)}")
        missing = {"prompt", "completion"} - set(data[split].column_names)
        if missing:
            raise PipelineError(f"{source}: split {split!r} has no column {', '.join(sorted(missing))}; "
                                f"it has {', '.join(data[split].column_names)}. preprocess_data.py writes both")
    return data


def looks_like_path(name: str) -> bool:
    """Return whether `name` can only be a path: hub names are NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with secrets removed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact(lines[0]) if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------------------------
# Manifests
# ---------------------------------------------------------------------------------------------------------------

def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_files(path: Path) -> dict[str, str]:
    """Return {relative name: SHA-256} of a file, or of every file in a folder except its manifest."""
    if path.is_file():
        return {path.name: sha256_file(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in (MANIFEST, FOLDER_MARKER))
    return {p.relative_to(path).as_posix(): sha256_file(p) for p in files}


def combined_hash(files: dict[str, str]) -> str:
    """Return one SHA-256 for the result of `hash_files`."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an output lies: in a folder, or beside a file as STEM.manifest.json."""
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.stem}.{MANIFEST}")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a result can depend on."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write_manifest(path: Path, args: argparse.Namespace, outputs: dict[str, str], started: float, **details: Any) -> None:
    """Write the manifest to the file `path`: what made the `outputs` ({name: SHA-256}), from what, in how long.

    `started` is the `time.time()` at which the stage began; `details` are the stage's own entries
    (`inputs`, `counts`, ...), JSON values.
    """
    write_json(path, sealed_manifest({"manifest_version": MANIFEST_VERSION, "stage": Path(sys.argv[0]).stem,
                                      "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                                      "arguments": public_arguments(args), "seconds": round(time.time() - started, 1),
                                      "versions": versions(), **details, "outputs": outputs}))


def sealed_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest with the SHA-256 of all its other entries, so that a change to it is noticed as one to an output is."""
    entries = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "checksum"}))
    return {**entries, "checksum": hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()}


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of the output at `path`, or None where it has none.  PipelineError if it is damaged."""
    file = manifest_path(path)
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise PipelineError(f"{file}: not valid JSON; write the output again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("outputs"), dict):
        raise PipelineError(f"{file}: is not a manifest of this pipeline; write the output again")
    if "checksum" in manifest and manifest["checksum"] != sealed_manifest(manifest)["checksum"]:
        raise PipelineError(f"{file}: has changed since it was written (its checksum differs); write the output again, or delete that "
                            "manifest to use the output as it is")
    return manifest


def check_manifest(path: Path, only: str = ".*") -> dict[str, Any] | None:
    """Return the manifest of `path` after comparing every file that it names with its hash; None without one.

    `only`: regular expression of the names that are compared, for a stage that reads no others.
    Raises PipelineError that names the first file which is missing or has changed.
    """
    manifest = read_manifest(path)
    folder = path if path.is_dir() else path.parent
    for name, expected in (manifest or {"outputs": {}})["outputs"].items():
        if not re.fullmatch(only, name):
            continue
        file = folder / name
        if not file.is_file():
            raise PipelineError(f"{file}: is missing, but {manifest_path(path)} names it; write the output again")
        if sha256_file(file) != expected:
            raise PipelineError(f"{file}: has changed since it was written (SHA-256 differs from {manifest_path(path)}); "
                                "write the output again, or delete that manifest to use the file as it is")
    return manifest


# ---------------------------------------------------------------------------------------------------------------
# The hub
# ---------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def hub_errors(kind: str, name: str,
               unreachable: str = " and the cache does not hold it; check the network, or name a local folder") -> Iterator[None]:
    """Turn what the Hugging Face libraries raise for a `name` that cannot be loaded or written into a PipelineError.

    `unreachable` says what it means, and what to do, where the hub does not answer.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (PipelineError, KeyboardInterrupt, Terminated):
        raise
    except Exception as error:
        chain = causes(error)

        def has(*kinds: type) -> bool:
            return any(isinstance(link, kinds) for link in chain)

        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        if has(GatedRepoError):
            reason = "is gated; accept its terms on the hub and log in (hf auth login)"
        elif has(RepositoryNotFoundError):
            reason = "does not exist on the hub, or is private; check the name, or log in (hf auth login)"
        elif has(RevisionNotFoundError):
            reason = "has no such revision; check it"
        elif has(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) or _is_connection_error(chain):
            reason = f"the hub cannot be reached{unreachable}"
        elif has(EntryNotFoundError):
            reason = f"lacks a file that is needed: {first_line(error)}"
        elif has(HFValidationError):
            reason = "is neither a local folder nor a valid hub name; check the spelling"
        elif has(HfHubHTTPError) or isinstance(error, (OSError, ValueError)):
            reason = first_line(error)
        else:
            raise
        raise PipelineError(f"{kind} {name}: {reason}") from error


@contextlib.contextmanager
def model_errors(name: str) -> Iterator[None]:
    """As `hub_errors`, for what transformers does with a model's files: where one is damaged, it raises errors of any type."""
    try:
        with hub_errors("model", name):
            yield
    except Exception as error:
        if isinstance(error, (PipelineError, MemoryError)) or type(error).__name__ == "OutOfMemoryError" or disk_mistake(error):
            raise
        raise PipelineError(f"model {name}: cannot be loaded ({type(error).__name__}: {first_line(error)}); "
                            "if one of its files is damaged, get it again") from error


def causes(error: BaseException) -> list[BaseException]:
    """Return the error, what it was raised from, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _is_connection_error(chain: list[BaseException]) -> bool:
    """Return whether an HTTP client gave up on the connection, whichever client the hub library uses."""
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    return bool(names & {"ConnectError", "ConnectTimeout", "NetworkError", "TimeoutException", "ConnectionError", "RemoteProtocolError"})


def check_local_model(name: str) -> None:
    """Raise PipelineError where `name` can only be a local folder and is not one that holds a model."""
    folder = Path(name)
    if not folder.exists() and looks_like_path(name):
        raise PipelineError(f"model {name}: no such folder; check the path")
    if folder.exists() and not ((folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()):
        raise PipelineError(f"model {name}: holds neither config.json nor adapter_config.json; name a model folder")


def hub_files(name: str, revision: str | None = None, repo_type: str = "model") -> tuple[str, set[str]]:
    """Return the commit of a hub repository and the names of its files; without the hub, those of the copy in the cache.

    Raises PipelineError where a name would lead out of the folder that the files are put into.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().repo_info(name, revision=revision, repo_type=repo_type)
        commit, names = str(info.sha), {sibling.rfilename for sibling in info.siblings or []}
    except Exception as error:
        if not _is_connection_error(causes(error)):
            raise
        folder = Path(snapshot_download(name, revision=revision, repo_type=repo_type, local_files_only=True))
        commit, names = folder.name, {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for file in sorted(names):
        if file.startswith("/") or "\\" in file or ".." in file.split("/"):
            raise PipelineError(f"{repo_type} {name}: the name of its file {file} leads out of its folder; do not use this repository")
    return commit, names


def find_manifest(source: str, repo_type: str = "model", revision: str | None = None) -> dict[str, Any] | None:
    """Return the manifest of a local folder or of a hub repository; None where there is none that this pipeline wrote."""
    if Path(source).is_dir():
        return read_manifest(Path(source))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with hub_errors(repo_type, source):
        try:
            file = Path(hf_hub_download(source, MANIFEST, repo_type=repo_type, revision=revision))
        except EntryNotFoundError:  # also where it is not in the cache and the hub is not asked
            return None
    try:
        return read_manifest(file.parent)
    except PipelineError:
        return None  # a repository may hold some other manifest.json


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a local folder or hub model; PipelineError in one line where there is none."""
    from transformers import AutoTokenizer

    check_local_model(name)
    with model_errors(name):
        if not Path(name).is_dir():
            hub_files(name, revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise PipelineError(f"model {name}: its tokenizer has no end-of-text token; use another model")
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"default": tokenizer.chat_template or ""}
    for label, template in templates.items():  # never used here, but saved, and published, with what is made of the model
        if not re.fullmatch(r"[\w-]+", label) or HOSTILE_TEMPLATE.search(template):
            raise PipelineError(f"model {name}: its chat template {label!r} reaches out of where it belongs; do not use this model")
    return tokenizer


def encode_prompts(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """Return the token ids of prompts, as training and inference both see them.

    A prompt gets the special tokens that the tokenizer puts before a text, and none behind it: the completion goes on
    there.  Text that looks like a special token stays text.
    """
    if not prompts:
        return []
    encoded = tokenizer(prompts, return_attention_mask=False, split_special_tokens=True)["input_ids"]
    eos = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == eos and len(ids) > 1 else ids for ids in encoded]


def choose_precision(name: str) -> str:
    """Return bf16, fp16 or float32 for `auto`: what the hardware computes fast; any other name is returned as it is."""
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if any(capabilities.get(kind) for kind in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"


def device_name() -> str:
    """Return the GPU's name, or CPU and the number of threads."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def available_memory() -> int:
    """Return the bytes that this process can still take: of the GPU's memory, or of the machine's within the limit of its container."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no such files, or the limit is the word "max"
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def torch_dtype(precision: str) -> Any:
    """Return the torch dtype of bf16, fp16 or float32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[precision]


def check_hub_write(repo_id: str, repo_type: str = "model") -> None:
    """Raise PipelineError unless `repo_id` is a valid name and the token of the environment or login may write there.

    Called before hours of work, not after: an upload would fail only then.  What the hub does not tell about a token is
    left to the upload.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    flag = f"--hf_repository {repo_id}"
    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise HFValidationError(repo_id)
    except HFValidationError:
        raise PipelineError(f"{flag}: not a hub name of the form OWNER/NAME") from None
    if is_offline_mode():
        raise PipelineError(f"{flag}: HF_HUB_OFFLINE is set, and publishing needs the hub; unset it, or stay local")
    with hub_errors(repo_type, repo_id, "; check the network, or stay local"):
        try:
            account = with_hub_retries(HfApi().whoami, repo_id)
        except LocalTokenNotFoundError:
            raise PipelineError(f"{flag}: no token; log in first (hf auth login) or set HF_TOKEN") from None
        except HfHubHTTPError as error:
            if error.response.status_code == 401:
                raise PipelineError(f"{flag}: the hub refuses the token; log in again (hf auth login)") from None
            raise
    refusal = write_refusal(account, repo_id)
    if refusal:
        raise PipelineError(f"{flag}: {refusal}")


def write_refusal(account: dict[str, Any], repo_id: str) -> str | None:
    """Return why the hub would refuse a push to `repo_id`, from what it tells about the account and its token; None: it may.

    A token of the role `fineGrained` lists its permissions for users, organizations and single repositories; the
    account lists the organizations that it is in, and its role there.
    """
    owner = repo_id.partition("/")[0].casefold()
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return "the token may only read; log in with one that may write"
    scopes = token.get("fineGrained", {}).get("scoped")
    if token.get("role") == "fineGrained" and scopes is not None:
        writable = {str(scope.get("entity", {}).get("name")).casefold() for scope in scopes if "repo.write" in scope.get("permissions", [])}
        if not writable & {owner, repo_id.casefold()}:
            return f"the token may not write there (no repo.write for {owner}); change its permissions"
        return None
    roles = {org.get("name", "").casefold(): org.get("roleInOrg") for org in account.get("orgs", [])}
    if owner not in roles and owner != account.get("name", owner).casefold():
        return f"{owner} is neither your account ({account['name']}) nor one of its organizations; check the name"
    return "your role in that organization is to read only; choose another owner" if roles.get(owner) == "read" else None


def with_hub_retries(attempt: Callable[[], Any], name: str) -> Any:
    """Return `attempt()`, tried again with growing pauses after a fault that may pass, and once after a conflict.

    Such faults are 408, 429, 5xx and broken connections; a pause is at least what the hub's Retry-After asks for, up to
    LONGEST_PAUSE.  A conflict (412) is a commit of somebody else since the repository was read.
    """
    pauses, conflicts = list(HUB_PAUSES), 0
    while True:
        try:
            return attempt()
        except Exception as error:
            status, retry_after = _http_status(error)
            if status == 412 and not conflicts:
                conflicts += 1
                print(f"{name}: somebody else has committed meanwhile; reading it again", file=sys.stderr)
                continue
            passing = status in (408, 429) or status >= 500 or (not status and _is_connection_error(causes(error)))
            if not passing or not pauses or retry_after > LONGEST_PAUSE:
                raise
            pause = max(pauses.pop(0), retry_after)
            print(f"{name}: {first_line(error)}; trying again in {pause} s ({len(HUB_PAUSES) - len(pauses)} of {len(HUB_PAUSES)})",
                  file=sys.stderr)
            time.sleep(pause)


def _http_status(error: BaseException) -> tuple[int, int]:
    """Return the status of the answer that an error speaks of, and its Retry-After in seconds; 0 where there is none."""
    response = next((link.response for link in causes(error) if getattr(link, "response", None) is not None), None)
    if response is None:
        return 0, 0
    retry_after = response.headers.get("Retry-After", "")
    return response.status_code, int(retry_after) if retry_after.isdigit() else 0


def push_folder(folder: Path, repo_id: str, message: str, repo_type: str = "model",
                delete: re.Pattern | None = None, keep_branch: str | None = None) -> str:
    """Publish every file of `folder` to `repo_id` in one commit and return the commit's identifier.

    The commit also deletes the repository's other files whose whole name matches `delete`; `keep_branch` names a branch
    that is put before that at the commit which has them.  What the hub then holds is compared with the folder, by hashes.
    On failure the folder is untouched, the repository is as it was, and a printed command repeats only the push.
    """
    try:
        with hub_errors(f"publishing failed: {repo_type}", repo_id, "; check the network"):
            local = {p.relative_to(folder).as_posix(): content_hashes(p) for p in sorted(folder.rglob("*")) if p.is_file()}
            return with_hub_retries(lambda: _push_once(folder, repo_id, message, repo_type, local, delete, keep_branch), repo_id)
    except BaseException:  # Ctrl-C and SIGTERM too
        command = ["python", str(Path(sys.argv[0]).with_name("pipeline_io.py")), "--push", str(folder), repo_id, "--message", message]
        command += ["--repo_type", repo_type] if repo_type != "model" else []
        command += ["--delete", delete.pattern] if delete else []
        command += ["--keep_branch", keep_branch] if keep_branch else []
        print(f"{folder} is complete on disk, and not published. To publish it alone:\n  {shlex.join(command)}", file=sys.stderr)
        raise


def _push_once(folder: Path, repo_id: str, message: str, repo_type: str, local: dict[str, tuple[str, str]], delete: re.Pattern | None,
               keep_branch: str | None) -> str:
    """Read the repository, commit what differs on top of what was read, and read it again; return the commit's identifier.

    A commit that went through although its answer was lost is found by the next try, which then has nothing to do.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    api.create_repo(repo_id, repo_type=repo_type, exist_ok=True)
    parent = api.repo_info(repo_id, repo_type=repo_type).sha
    present = hub_file_hashes(repo_id, repo_type, parent)
    additions = [CommitOperationAdd(name, folder / name) for name, hashes in local.items() if present.get(name) not in hashes]
    stale = [name for name in present if delete and delete.fullmatch(name) and name not in local]
    commit = parent
    if additions or stale:
        api.preupload_lfs_files(repo_id, additions, repo_type=repo_type, free_memory=False)
        if keep_branch and stale:
            put_branch(repo_id, repo_type, keep_branch, parent)
        operations = [*additions, *(CommitOperationDelete(name) for name in stale)]
        commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=parent).oid
    found = hub_file_hashes(repo_id, repo_type, commit)
    wrong = [name for name, hashes in local.items() if found.get(name) not in hashes] + [name for name in stale if name in found]
    if wrong:
        raise PipelineError(f"{repo_type} {repo_id}: {wrong[0]} on the hub is not what was published (commit {commit}); publish it again")
    return commit


def content_hashes(content: Path | bytes) -> tuple[str, str]:
    """Return the two names under which a hub knows a file's content: the SHA-256 of a large one, git's SHA-1 of a small one."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    large, small = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            large.update(block)
            small.update(block)
    return large.hexdigest(), small.hexdigest()


def hub_file_hashes(repo_id: str, repo_type: str, commit: str) -> dict[str, str]:
    """Return {name: SHA-256 of a large file, git's SHA-1 of a small one} of a commit, as the hub reports them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in tree if isinstance(file, RepoFile)}


def put_branch(repo_id: str, repo_type: str, branch: str, commit: str) -> None:
    """Let `branch` point at `commit`, wherever in the history of that commit it pointed before.

    Raises PipelineError where it points elsewhere: commits that only this branch holds would be lost.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    heads = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).branches}
    if heads.get(branch) == commit:
        return
    if branch in heads:
        history = {entry.commit_id for entry in api.list_repo_commits(repo_id, repo_type=repo_type, revision=commit)}
        if heads[branch] not in history:
            raise PipelineError(f"{repo_type} {repo_id}: its branch {branch} holds commits that main does not; rename that branch")
        api.delete_branch(repo_id, branch=branch, repo_type=repo_type)
    api.create_branch(repo_id, branch=branch, revision=commit, repo_type=repo_type)


# ---------------------------------------------------------------------------------------------------------------
# Lineage: where an output comes from, told by the manifests
# ---------------------------------------------------------------------------------------------------------------

# What each stage reads: the argument that names it, and the entry that holds its manifest as it was then.
INPUTS_OF_STAGE = {
    "preprocess_data": (("input_file", None),),
    "train": (("dataset", "dataset_manifest"),),
    "merge_lora": (("hf_repository", "adapter_manifest"),),
    "benchmarking": (("hf_repository", "fine_tuned_manifest"), ("dataset", "dataset_manifest")),
}
FILES_MATCH = "files match"


def lineage(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (line, whether it tells of a change) for the output at `path`, each stage behind it, and the code bases.

    What counts is the copy of its input's manifest that a stage keeps; what lies at that place now is compared with it.
    """
    output = path.parent if path.is_file() and not manifest_path(path).is_file() else path
    manifest = read_manifest(output)
    if manifest is None or (output != path and path.name not in manifest["outputs"]):
        raise PipelineError(f"{path}: no manifest tells where it comes from; name an output of one of the five stages")
    change = changed_file(output, manifest)
    yield from _lineage_of(str(output), manifest, change or FILES_MATCH, bool(change), set())


def changed_file(output: Path, manifest: dict[str, Any]) -> str | None:
    """Return what is wrong with the first file that is missing or differs from the manifest, or None."""
    folder = output if output.is_dir() else output.parent
    for name, digest in manifest["outputs"].items():
        if not (folder / name).is_file():
            return f"MISSING: {name}"
        if sha256_file(folder / name) != digest:
            return f"CHANGED: {name}"
    return None


def _lineage_of(place: str, manifest: dict[str, Any], state: str, changed: bool, seen: set[str]) -> Iterator[tuple[str, bool]]:
    identity = combined_hash(manifest["outputs"])
    if identity in seen:
        return  # the data set that a benchmark and its model share
    seen.add(identity)
    stage, arguments = str(manifest.get("stage")), _mapping(manifest.get("arguments"))
    inputs = [(str(arguments[name]), manifest.get(entry)) for name, entry in INPUTS_OF_STAGE.get(stage, ()) if arguments.get(name)]
    base = {"train": arguments.get("model_name_or_path"), "merge_lora": manifest.get("base_model"),
            "benchmarking": arguments.get("base_model")}.get(stage)
    origins = [name for name, _ in inputs] + ([f"base model {base}"] if base else [])
    yield _line(place, f"{stage}.py", str(manifest.get("created"))[:10], f"sha256 {identity[:12]}…", state,
                f"from {', '.join(origins)}" if origins else ""), changed
    followed = False
    for name, then in inputs:
        found, state, changed = _input_now(Path(name), then if "outputs" in _mapping(then) else None, manifest)
        if found is None:
            yield _line(name, state), changed
        else:
            followed = True
            yield from _lineage_of(name, found, state, changed, seen)
    for source in manifest.get("sources") or [] if not followed else []:
        yield _line(_mapping(source).get("repository"), f"commit {_mapping(source).get('commit') or 'none: a plain folder'}"), False


def _input_now(path: Path, then: dict[str, Any] | None, reader: dict[str, Any]) -> tuple[dict[str, Any] | None, str, bool]:
    """Return (manifest to go on with, what is to be said of the input at `path`, whether that is a change)."""
    if not path.exists():
        return then, "is not here (removed, in another folder, or on the hub), not compared", False
    now = read_manifest(path)
    if now is None:
        return then, "has no manifest, not compared", False
    used = _mapping(reader.get("inputs"))
    # a data set that is written again with the same rows has the same data_hash, and other files beside them
    same = then is None or then["outputs"] == now["outputs"] or then.get("data_hash", 0) == now.get("data_hash")
    if not same or any(now["outputs"].get(name, digest) != digest for name, digest in used.items()):
        return then, f"WRITTEN AGAIN on {str(now.get('created'))[:10]}", True
    change = changed_file(path, now)
    return now, change or FILES_MATCH, bool(change)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # a manifest from elsewhere may hold anything


def _line(*parts: object) -> str:
    """Return the parts on one line, without what a terminal would obey."""
    return redact("  ".join("".join(c if c.isprintable() else "?" for c in str(part)) for part in parts if part))


# ---------------------------------------------------------------------------------------------------------------
# This file as a script
# ---------------------------------------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> None:
    """Tell where an output comes from, or publish a folder, as a stage whose push failed says that it can be repeated."""
    parser = argparse.ArgumentParser(description="Tell where an output comes from, or repeat a push that failed.", allow_abbrev=False)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--lineage", type=Path, metavar="PATH", help="tell where this model, data set or table comes from")
    task.add_argument("--push", nargs=2, metavar=("FOLDER", "REPOSITORY"), help="publish a folder in one commit")
    parser.add_argument("--repo_type", choices=("model", "dataset"), default="model", help="(default: %(default)s)")
    parser.add_argument("--message", default="Publish", help="of the commit (default: %(default)s)")
    parser.add_argument("--delete", metavar="PATTERN", help="also delete the repository's other files whose name matches this "
                                                            "regular expression (default: none)")
    parser.add_argument("--keep_branch", help="branch that keeps what is deleted (default: none)")
    args = parser.parse_args(argv)
    run_stage(_show_lineage if args.lineage else _push, args)


def _show_lineage(args: argparse.Namespace) -> None:
    changes = 0
    for line, change in lineage(args.lineage):
        print(line, flush=True)
        changes += change
    if changes:
        raise PipelineError(f"{args.lineage}: {changes} of its stages no longer match what was used; write them again, or remember it "
                            "where you tell of the result")


def _push(args: argparse.Namespace) -> None:
    folder, repo_id = Path(args.push[0]), args.push[1]
    try:
        pattern = re.compile(args.delete) if args.delete else None
    except re.error as error:
        raise PipelineError(f"--delete {args.delete}: not a regular expression ({error})") from None
    if not folder.is_dir():
        raise PipelineError(f"--push {folder}: no such folder; name what a stage wrote")
    check_hub_write(repo_id, args.repo_type)
    check_manifest(folder)
    commit = push_folder(folder, repo_id, args.message, args.repo_type, pattern, args.keep_branch)
    print(f"published {args.repo_type} {repo_id} (commit {commit})")


if __name__ == "__main__":
    main()
