"""The temporary folder for clones: made and removed by this run, never anybody else's."""
import contextlib
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from pipeline.run.errors import PipelineError
from pipeline.run.outputs import NO_LOCKS, TEMPORARY, is_ours, remove_folder

CLONE_MARKER = ".parse_data_clone"
MAKING_SECONDS = 60  # a run locks the folder that it made within this time
START_SECONDS = 5  # tolerance on a process's start time, which shifts when the clock is set


@contextlib.contextmanager
def clone_folder(path: Path) -> Iterator[Path]:
    """Make the folder `path` for this run and remove it afterwards, whatever happens.

    A folder with our marker was left by a killed run and is removed, unless a run holds the marker's lock
    (the process number is no proof: in a container it is often that of the run before).  Anything else at
    `path` raises PipelineError and is not touched.  The folder gets its marker before its name, and loses
    the name first, so that what a killed run leaves is always recognised.
    """
    exists = PipelineError(f"--clone_path {path}: exists already and will not be deleted; move it away or "
                           "choose another path")
    if path.name in ("", ".."):
        raise exists  # the current folder, or one above it
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}{TEMPORARY}-"
    _sweep(path, prefix)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        with open(temporary / CLONE_MARKER, "w", encoding="ascii") as marker:
            _lock(marker)
            marker.write(_identity(os.getpid()))
            marker.flush()
            if path.exists() or path.is_symlink():
                raise exists
            os.rename(temporary, path)
            try:
                yield path
            finally:
                os.rename(path, temporary)
    finally:
        if temporary.exists():
            remove_folder(temporary, CLONE_MARKER)


def _sweep(path: Path, prefix: str) -> None:
    """Remove what killed runs left at `path` and beside it; PipelineError where another run uses `path`."""
    if path.is_dir() and not path.is_symlink() and (path / CLONE_MARKER).is_file():
        with _taken_over(path / CLONE_MARKER) as ended:
            if not ended:
                raise PipelineError(f"--clone_path {path}: another run is using it; wait for it or choose "
                                    "another path")
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
            os.rename(path, temporary)  # onto the empty folder
            remove_folder(temporary, CLONE_MARKER)
        print(f"removed {path}, left by a run that was killed", file=sys.stderr)
    for left in list(path.parent.iterdir()):
        if not left.name.startswith(prefix) or not left.is_dir() or left.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):  # of another run, or another user
            marker = left / CLONE_MARKER
            being_made = not marker.is_file() or not marker.stat().st_size
            if not is_ours(left, CLONE_MARKER) or (being_made
                                                   and time.time() - left.stat().st_mtime < MAKING_SECONDS):
                continue
            with _taken_over(marker) if marker.is_file() else contextlib.nullcontext(True) as ended:
                if ended:
                    remove_folder(left, CLONE_MARKER)


@contextlib.contextmanager
def _taken_over(marker: Path) -> Iterator[bool]:
    """Yield whether the run that wrote the marker has ended; if so, this one holds its lock in the block."""
    with open(marker, "r+", encoding="ascii", errors="replace") as file:
        locked = _lock(file)
        if locked is None:
            yield not _is_running(file.read())
        else:
            # while it was opened, another run may have swept the folder and put its own in its place
            yield locked and marker.exists() and os.path.samestat(os.fstat(file.fileno()), marker.stat())


def _lock(file: IO) -> bool | None:
    """Lock the file until it is closed; return whether it was free, None if there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _identity(pid: int) -> str:
    """Return the number and start time of a process, which together identify it."""
    return f"{pid} {psutil.Process(pid).create_time():.0f}"


def _is_running(identity: str) -> bool:
    """Return whether the process that wrote the marker still runs."""
    pid, _, start = identity.strip().partition(" ")
    if not pid.isdigit() or not start.isdigit():
        return False  # killed before it was written
    try:
        return abs(psutil.Process(int(pid)).create_time() - int(start)) < START_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
