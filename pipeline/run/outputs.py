"""Files and folders that appear whole or not at all, with one writer at a time."""
import contextlib
import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from pipeline.run.errors import PipelineError

# Part of our temporary names: only what carries it, left by a killed run, is removed.
TEMPORARY = ".pipeline-tmp"
# A folder under that name also holds this file, so that a user's folder of the same name is safe.
FOLDER_MARKER = ".pipeline-tmp-folder"
MANIFEST = "manifest.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_warned: set[tuple[int, str]] = set()  # (file system, warning that was printed for it)


@contextlib.contextmanager
def output_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Lock the output at `path` for this process, and remove what killed runs left beside it.

    Raises PipelineError where another process writes the same output, or this one does already; with `wait`,
    waits for it instead.  The lock file stays (removing it would let two processes lock two different files
    of one name); the kernel drops the lock with the process.  Where the file system has no locks, the output
    is written without one.
    """
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # preserve_lock_file: filelock then takes no file's mere existence for a lock, which would outlast a kill
    lock = FileLock(path.parent / f".{path.name}.lock", blocking=wait, preserve_lock_file=True)
    try:
        lock.acquire()
    except Timeout:
        raise PipelineError(f"{path}: another process is writing this output; wait for it or choose "
                            "another path") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_once(path.parent, "has no locks; let no two runs write the same output there")
    try:
        recover_folder(path)
        sweep_leftovers(path)
        yield
    finally:
        lock.release()


def _warn_once(folder: Path, what: str) -> None:
    """Print, once per file system, what it cannot do."""
    if (warning := (folder.stat().st_dev, what)) not in _warned:
        _warned.add(warning)
        print(f"note: the file system of {folder} {what}", file=sys.stderr)


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
    """Return whether a folder with one of our temporary names was made by us: it is empty, or holds our
    marker or a manifest."""
    return (folder / marker).is_file() or (folder / MANIFEST).is_file() or not any(folder.iterdir())


def remove_folder(folder: Path, marker: str = FOLDER_MARKER) -> None:
    """Remove a folder of ours, its marker last, so that one killed in between is still recognised."""
    with contextlib.suppress(OSError):  # a full disk, which this is about to free
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
    """Remove a folder in which a child process orphaned by a signal, such as git, may still write for a
    moment."""
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
    """Yield a file to write; it takes the place of `path` when the block ends without an error.

    Lone surrogates, such as a file name in an old encoding has, are written as \\udcNN, JSON's own escape.
    """
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") if binary else open(temporary, "w", encoding="utf-8", newline="\n",
                                                       errors="backslashreplace") as file:
            yield file
            file.flush()
            _sync(file.fileno(), path.parent)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; it takes the place of the folder `path` when the block ends without an
    error.

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


def check_name(path: Path) -> None:
    """Raise PipelineError where an output's path, such as `.`, ends in no name to rename to."""
    if path.name in ("", ".."):
        raise PipelineError(f"{path}: an output needs a name of its own; name the file or folder itself")


def check_replaceable(path: Path, holds: str | None = None) -> None:
    """Raise PipelineError unless the folder `path` is absent, empty, or was written by this pipeline and
    nobody else.

    `holds` names a file that every output of the calling stage holds: the output of another stage is not
    replaced.
    """
    here = Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise PipelineError(f"{path}: is the current folder, or holds it, and an output folder is replaced "
                            "as a whole; choose another output folder")
    check_name(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise PipelineError(f"{path}: is not a folder; choose another output folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    foreign = _foreign_files(path)
    if foreign:
        raise PipelineError(f"{path}: holds files that this pipeline did not write ({foreign[0]}); choose "
                            "another output folder")
    if holds and not (path / holds).is_file():
        raise PipelineError(f"{path}: is not an output of this script (it holds no {holds}); choose another "
                            "output folder")


def check_data_set_path(path: Path) -> None:
    """Raise PipelineError where `datasets` would misread the path of a data set."""
    if "::" in str(path):
        raise PipelineError(f"{path}: datasets reads '::' as the way into an archive and would use another "
                            "folder; choose a path without it")


def _foreign_files(folder: Path) -> list[str]:
    """Return the files that the folder's manifest does not name; all of them where it has no manifest of
    ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        manifest = None
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))
             if not p.is_dir() or p.is_symlink()]
    ours = isinstance(manifest, dict) and "manifest_version" in manifest
    if not ours or not isinstance(manifest.get("outputs"), dict):
        return names
    # datasets keeps what it computes from a data set in cache-*.arrow beside it
    return [n for n in names if n != MANIFEST and n not in manifest["outputs"]
            and not re.fullmatch(r"(.*/)?cache-[^/]*\.arrow", n)]


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.pipeline-previous")


def recover_folder(path: Path) -> None:
    """Finish what `atomic_folder` was doing when it was killed between its two renames, or after them."""
    previous = _previous(path)
    if not previous.is_dir() or not is_ours(previous):
        return
    if path.exists() or not (previous / MANIFEST).is_file():
        remove_folder(previous)
    else:
        (previous / FOLDER_MARKER).unlink(missing_ok=True)
        os.rename(previous, path)


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return  # Windows opens no folder
    handle = os.open(path, os.O_RDONLY)
    try:
        _sync(handle, path)
    finally:
        os.close(handle)


def _sync(handle: int, folder: Path) -> None:
    """Make what was written survive a power failure, where the file system of `folder` can promise that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
        _warn_once(folder, "does not say when what was written is safe; after a power failure, check the "
                           "output (python -m pipeline lineage)")


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                _sync(file.fileno(), folder)
        else:
            _sync_folder(path)
    _sync_folder(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


