"""One writer at a time: the lock of an output, in one process, after a kill, and where there are no locks."""
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run import outputs
from pipeline.run.errors import PipelineError
from pipeline.run.outputs import TEMPORARY, output_lock

ROOT = Path(__file__).resolve().parents[1]
HOLD = ("import sys, time\nfrom pathlib import Path\nfrom pipeline.run.outputs import output_lock\n"
        "with output_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(100)\n")


def names(folder: Path) -> list[str]:
    """Return the names of what the folder holds."""
    return sorted(path.name for path in folder.iterdir())


def test_a_second_lock_in_one_process_is_refused(tmp_path: Path) -> None:
    """A stage that writes two outputs to one place mixes them, or waits for itself for ever."""
    with output_lock(tmp_path / "a"):
        with pytest.raises(PipelineError, match="a: another process is writing this output"), \
                output_lock(tmp_path / "a"):
            pass
        # the refusal has not let the first one go
        with pytest.raises(PipelineError), output_lock(tmp_path / "a"):
            pass
    with output_lock(tmp_path / "a"):
        assert names(tmp_path) == [".a.lock"]


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """After a kill, an output cannot be written again before some file is removed by hand."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a")], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(PipelineError), output_lock(tmp_path / "a"):
        pass
    holder.kill()
    holder.communicate()
    with output_lock(tmp_path / "a"):
        assert names(tmp_path) == [".a.lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture) -> None:
    """On some network file systems no stage can write at all; or it takes a mere file for a lock, which a
    kill leaves behind."""
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(outputs, "_warned", set())
    for name in ("a", "b", "a"):
        (tmp_path / f".{name}{TEMPORARY}-1").touch()
        with output_lock(tmp_path / name):
            assert not (tmp_path / f".{name}{TEMPORARY}-1").exists()
    notes = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("removed ")]
    assert notes == [f"note: the file system of {tmp_path} has no locks; let no two runs write the same "
                     "output there"]
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == [b"", b""]


def test_another_fault_of_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken disk passes for one without locks."""
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), output_lock(tmp_path / "a"):
        pass
