"""parse_data.py: the files that a run writes, its messages, and what it leaves."""
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from parsing_runs import MAIN, Repository, Result

from pipeline.sources.source import LFS_POINTER, blob_id

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("plain_git")


def test_raw_and_provenance_lines(repository: Repository, parse: Callable[..., Result]) -> None:
    """The next stage cannot read the raw file, or a line's origin is that of another line."""
    commit = repository.commit({"b.kt": b"val b = 2\n", "a/z.kt": MAIN,
                                "LICENSE": b"free", "readme.md": b"x"})
    result = parse(repository.path)
    assert result.raw == [{"file_text": MAIN.decode()}, {"file_text": "val b = 2\n"}]
    assert result.provenance == [
        {"repository": "code", "commit": commit, "path": path, "blob": blob_id(data),
         "license_file": "LICENSE", "license": "NOASSERTION"}
        for path, data in (("a/z.kt", MAIN), ("b.kt", b"val b = 2\n"))]
    assert result.manifest["counts"] == {"kept": 2, "kept, duplicate of an earlier file": 0}


def test_two_runs_give_the_same_bytes(repository: Repository, parse: Callable[..., Result]) -> None:
    """Results cannot be repeated."""
    repository.commit({f"{name}.kt": f"val {name} = 1\n".encode() for name in "zbyä"})
    assert parse(repository.path).bytes == parse(repository.path, output="again/raw.jsonl").bytes


def test_manifest_hashes_are_those_of_the_files(repository: Repository, parse: Callable[..., Result],
                                                tmp_path: Path) -> None:
    """preprocess_data.py refuses an intact file, or takes a damaged one."""
    repository.commit({"a.kt": MAIN})
    outputs = parse(repository.path).manifest["outputs"]
    assert outputs == {name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
                       for name in ("raw.jsonl", "raw.provenance.jsonl")}


def test_odd_files_are_counted_by_reason_and_named(repository: Repository,
                                                   parse: Callable[..., Result]) -> None:
    """Files vanish without a word, or one of them ends the run."""
    repository.commit({"ok.kt": MAIN, "latin.kt": b"val s = \"\xe4\"\n", "nul.kt": b"a\0b", "empty.kt": b"",
                       "blank.kt": b" \n", "big.kt": b"val a = 1\n" * 100,
                       "lfs.kt": LFS_POINTER + b"oid sha256:0\n"})
    result = parse(repository.path, options=("--max_file_bytes", 500))
    assert result.paths == ["ok.kt"]
    assert result.skipped == {"not UTF-8": ["latin.kt"], "NUL bytes": ["nul.kt"],
                              "empty": ["blank.kt", "empty.kt"], "larger than --max_file_bytes": ["big.kt"],
                              "LFS pointer": ["lfs.kt"]}
    assert result.manifest["counts"]["skipped, empty"] == 2


def test_bom_and_line_ends(repository: Repository, parse: Callable[..., Result]) -> None:
    """A BOM or CRLF reaches the model."""
    repository.commit({"a.kt": b"\xef\xbb\xbfval a = 1\r\nval b = 2\r\n"})
    assert parse(repository.path).texts == ["val a = 1\nval b = 2\n"]


def test_duplicates_are_kept_and_counted(repository: Repository, parse: Callable[..., Result]) -> None:
    """The raw file is not what the repository holds, or nothing says that it repeats itself."""
    repository.commit({"a.kt": MAIN, "b.kt": MAIN, "c.kt": b"val c = 1\n"})
    result = parse(repository.path)
    assert result.paths == ["a.kt", "b.kt", "c.kt"]
    assert result.manifest["sources"][0]["duplicates"] == ["b.kt"]
    assert result.manifest["counts"]["kept, duplicate of an earlier file"] == 1


def test_a_failure_leaves_the_previous_output(repository: Repository, parse: Callable[..., Result],
                                              parse_failure: Callable[..., str], tmp_path: Path) -> None:
    """A run that fails in its second source destroys the result of the run before."""
    repository.commit({"a.kt": MAIN})
    parse(repository.path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    repository.commit({"b.kt": b"val b = 1\n"})
    assert "no such folder" in parse_failure(repository.path, tmp_path / "missing")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_command_line_of_a_mistake(run_script: Callable, error_line: Callable[[str], str],
                                   tmp_path: Path) -> None:
    """A shell script does not notice that the stage failed."""
    result = run_script("parse_data.py", "--repo_url", "missing", "--clone_path", "clone",
                        "--output_file", "out/raw.jsonl")
    assert result.returncode == 1
    assert error_line(result.stderr).startswith("parse_data.py: error: --repo_url missing: no such folder")
    assert not (tmp_path / "clone").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".raw.jsonl.lock"]


def test_git_variables_of_a_hook_do_not_lead_elsewhere(repository: Repository, tmp_path: Path,
                                                       run_script: Callable) -> None:
    """Started from a git hook, the script works on the hook's repository and changes its configuration."""
    repository.commit({"a.kt": MAIN})
    other = Repository(tmp_path / "other")
    other.commit({"x.kt": b"val x = 1\n"})
    config = (other.path / ".git" / "config").read_bytes()
    environment = {**os.environ, "GIT_DIR": str(other.path / ".git"), "GIT_WORK_TREE": str(other.path),
                   "GIT_INDEX_FILE": str(other.path / ".git" / "index")}
    result = run_script("parse_data.py", "--repo_url", repository.path, "--clone_path", "clone",
                        "--output_file", "out/raw.jsonl", env=environment)
    assert result.returncode == 0, result.stderr
    assert Result(tmp_path / "out" / "raw.jsonl").paths == ["a.kt"]
    assert (other.path / ".git" / "config").read_bytes() == config
    assert not (other.path / ".git" / "FETCH_HEAD").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM leaves the clone, a git process that goes on, or a destroyed output."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "raw.jsonl").write_text("previous\n")
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection and never answers
        server.settimeout(60)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.git"
        process = subprocess.Popen(
            [sys.executable, ROOT / "parse_data.py", "--repo_url", url, "--clone_path", "clone",
             "--output_file", "out/raw.jsonl"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            # pytest in the background ignores SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            assert connection.recv(1) == b"G"  # git is in the middle of its request
            assert (tmp_path / "clone").is_dir()
            process.send_signal(number)
            _, stderr = process.communicate(timeout=20)
            while connection.recv(4096):  # ends when git's own processes have ended
                pass
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) == 2
    assert not (tmp_path / "clone").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".raw.jsonl.lock", "raw.jsonl"]
    assert (tmp_path / "out" / "raw.jsonl").read_text() == "previous\n"
