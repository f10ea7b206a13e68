"""The folder that a clone lives in: made by this run, removed by it, and never somebody else's."""
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import TEMPORARY, is_ours, remove_folder

CLONE_MARKER = ".parse_data_clone"


@contextlib.contextmanager
def clone_folder(path: Path) -> Iterator[Path]:
    """Make the folder `path` for this run and remove it afterwards, whatever happens.

    A folder that carries our marker was left by a killed run and is swept.  Anything else that exists at
    `path` is not ours: PipelineError, and it is not touched.  The folder gets its marker before it gets its
    name, and loses the name first: whenever the run is killed, what is left is known for ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}{TEMPORARY}-"
    temporary = path.with_name(f"{prefix}{os.getpid()}")
    if path.is_dir() and not path.is_symlink() and (path / CLONE_MARKER).is_file():
        if _process_alive((path / CLONE_MARKER).read_text()):
            raise PipelineError(f"--clone_path {path}: another run is using it; wait for it or choose "
                                "another path")
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
            raise PipelineError(f"--clone_path {path}: exists already and will not be deleted; move it away "
                                "or choose another path")
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
