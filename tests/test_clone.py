"""pipeline/sources/clone.py: the clone's folder is made and removed, and nobody else's ever is."""
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from parsing_runs import MAIN, Repository, Result

from pipeline.run.errors import PipelineError
from pipeline.run.outputs import TEMPORARY
from pipeline.sources.clone import CLONE_MARKER, clone_folder


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "link", "marker of another kind"])
def test_what_existed_at_clone_path_stays(kind: str, repository: Repository, tmp_path: Path,
                                          run_script: Callable, error_line: Callable[[str], str]) -> None:
    """--clone_path deletes the user's files."""
    repository.commit({"a.kt": MAIN})
    path, target = tmp_path / "clone", tmp_path / "target"
    target.mkdir()
    (target / CLONE_MARKER).write_text("0")
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(target)
    else:
        path.mkdir()
        if kind == "folder":
            (path / "mine.txt").write_text("mine")
        elif kind == "marker of another kind":
            (path / CLONE_MARKER).mkdir()
    # All but when it was last read.
    before = sorted(tmp_path.glob("clone/**/*")), path.lstat()[:7], path.lstat().st_mtime_ns
    result = run_script("parse_data.py", "--repo_url", repository.path, "--clone_path", path,
                        "--output_file", "out/raw.jsonl")
    assert result.returncode == 1
    assert "exists already and will not be deleted" in error_line(result.stderr)
    assert (sorted(tmp_path.glob("clone/**/*")), path.lstat()[:7], path.lstat().st_mtime_ns) == before
    assert (target / CLONE_MARKER).exists()
    assert not (tmp_path / "out" / "raw.jsonl").exists()


@pytest.mark.parametrize("marker", ["dead", ""])
def test_the_leftover_of_a_dead_run_is_swept(marker: str, repository: Repository,
                                             parse: Callable[..., Result], tmp_path: Path,
                                             capfd: pytest.CaptureFixture) -> None:
    """After a kill -9, every run fails until the user cleans up by hand."""
    repository.commit({"a.kt": MAIN})
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / CLONE_MARKER).write_text(str(child.pid) if marker else "")
    (tmp_path / "out").mkdir()
    leftovers = [tmp_path / "out" / f".raw.{name}.pipeline-tmp-{child.pid}"
                 for name in ("jsonl", "provenance.jsonl", "manifest.json")]
    for path in leftovers:
        path.touch()
    assert parse(repository.path).paths == ["a.kt"]
    assert f"removed {tmp_path / 'clone'}, left by a run that was killed" in capfd.readouterr().err
    assert not any(path.exists() for path in leftovers)


def test_the_clone_of_a_live_run_is_refused(repository: Repository, run_script: Callable,
                                            error_line: Callable[[str], str], tmp_path: Path) -> None:
    """Two runs delete each other's clones."""
    repository.commit({"a.kt": MAIN})
    with clone_folder(tmp_path / "clone"):
        marker = (tmp_path / "clone" / CLONE_MARKER).read_bytes()
        result = run_script("parse_data.py", "--repo_url", repository.path, "--clone_path", "clone",
                            "--output_file", "out/raw.jsonl")
        assert result.returncode == 1
        assert "another run is using it" in error_line(result.stderr)
        assert (tmp_path / "clone" / CLONE_MARKER).read_bytes() == marker
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code", "out"]


def test_a_number_of_an_earlier_container_is_no_run(repository: Repository, parse: Callable[..., Result],
                                                    tmp_path: Path) -> None:
    """A container's processes have the same numbers each time: after a kill, no run works any more."""
    repository.commit({"a.kt": MAIN})
    left = tmp_path / f".clone{TEMPORARY}-{os.getpid()}"
    for folder in (tmp_path / "clone", left):
        folder.mkdir()
        (folder / CLONE_MARKER).write_text(str(os.getpid()))
    assert parse(repository.path).paths == ["a.kt"]
    assert not left.exists()


@pytest.mark.parametrize("shift", [None, 0, 1, -100])
def test_where_there_are_no_locks(shift: int | None, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks, stage 1 does not work, or two runs delete each other's clones."""
    def flock(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with clone_folder(tmp_path / "clone") as clone:
        number, start = (clone / CLONE_MARKER).read_text().split()
    assert not clone.exists()
    clone.mkdir()
    (clone / CLONE_MARKER).write_text(number if shift is None else f"{number} {int(start) + shift}")
    if shift in (0, 1):
        with pytest.raises(PipelineError, match="another run is using it"), clone_folder(clone):
            pass
    else:
        with clone_folder(clone):
            pass


def test_a_folder_that_another_run_is_making_stays(tmp_path: Path) -> None:
    """A run that begins at the same moment loses its folder between its making and its lock."""
    fresh, old = (tmp_path / f".clone{TEMPORARY}-{name}" for name in ("fresh", "old"))
    for folder in (fresh, old):
        folder.mkdir()
        (folder / CLONE_MARKER).touch()
    os.utime(old, (0, 0))
    with clone_folder(tmp_path / "clone"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [fresh.name]


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_the_current_folder_is_no_place_for_a_clone(name: str, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """`--clone_path .` ends in a traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match="exists already and will not be deleted"), \
            clone_folder(Path(name)):
        pass


def test_a_folder_of_the_users_under_our_temporary_name_stays(tmp_path: Path) -> None:
    """A folder is removed for its name alone; or what a run left that was killed early stays for ever."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    theirs, ours = (tmp_path / f".clone{TEMPORARY}-{name}" for name in ("mine", gone.pid))
    for folder in (theirs, ours):
        folder.mkdir()
    (theirs / "thesis.txt").touch()
    (ours / CLONE_MARKER).write_text(str(gone.pid))
    with clone_folder(tmp_path / "clone") as clone:
        assert clone.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]
    assert (theirs / "thesis.txt").exists()
