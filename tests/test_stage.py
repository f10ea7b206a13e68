"""run/stage.py: what the user reads and the shell gets when a stage ends, and the types of arguments."""
import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.errors import PipelineError, Terminated
from pipeline.run.stage import (
    count_or,
    duration,
    fraction,
    non_negative_int,
    positive_int,
    positive_number,
    public_arguments,
    run_stage,
    share,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_a_library_makes_another_error_of(number: str, code: int) -> None:
    """Ctrl-C during a load ends in a traceback, or as a damaged file."""
    for error in ("ValueError('could not determine the shape')",
                  "pipeline.run.errors.PipelineError('the file is damaged')"):
        program = ("import argparse, os, signal, sys, pipeline.run.errors, pipeline.run.stage\n"
                   "def stage(args):\n    try:\n"
                   f"        os.kill(os.getpid(), signal.{number})\n        signal.pause()\n"
                   f"    except BaseException:\n        raise {error} from None\n"
                   "pipeline.run.stage.run_stage(stage, argparse.Namespace())\n")
        # preexec_fn: pytest in the background ignores SIGINT
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                              timeout=60, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_public_arguments_are_json(tmp_path: Path) -> None:
    """The manifest cannot be written."""
    args = argparse.Namespace(a=tmp_path, b=(1, "x"), c=[Path("y")], d=None, e=True, f=0.5)
    assert json.loads(json.dumps(public_arguments(args))) == {"a": str(tmp_path), "b": [1, "x"], "c": ["y"],
                                                              "d": None, "e": True, "f": 0.5}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0.0 s"), (4.24, "4.2 s"), (187, "3 min 07 s"),
                                               (7500, "2 h 05 min")])
def test_duration(seconds: float, text: str) -> None:
    """The time shown is not the time taken."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("kind", "good", "bad"), [
    (fraction, ["0", "0.5", "0.999"], ["1", "-0.1", "nan", "x"]),
    (share, ["0", "0.5", "1", "1.0"], ["1.1", "-0.1", "nan", "x"]),
    (positive_number, ["1e-3", "2", "0.5"], ["0", "-1e-3", "nan", "inf", "-inf", "1e999", "x"]),
    (positive_int, ["1", "10"], ["0", "-1", "1.5", ""]),
    (non_negative_int, ["0", "1"], ["-1", "x"]),
])
def test_argument_types(kind: Callable, good: list[str], bad: list[str]) -> None:
    """A senseless number is accepted and fails hours later."""
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            kind(text)


def test_a_word_stands_for_no_bound() -> None:
    """`--limit all` is refused, or 0 and a mistyped word are taken for it."""
    kind = count_or("all")
    assert kind("all") is None
    assert [kind("1"), kind("500")] == [1, 500]
    for text in ("0", "-1", "1.5", "none", "All", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="neither all nor a whole number"):
            kind(text)


def stop_with(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def stage(args: argparse.Namespace) -> None:
        raise error
    return stage


@pytest.mark.parametrize(("error", "code", "message"), [
    (PipelineError("no such\n  file"), 1, "error: no such file"),
    (PipelineError("https://u:secret@h/x"), 1, "error: https://***@h/x"),
    (KeyboardInterrupt(), 130, "interrupted; no output was left half written"),
    (Terminated(), 143, "terminated; no output was left half written"),
    (OSError(errno.ENOSPC, "x", "out/a"), 1, "error: out/a: no space left on the disk"),
    (OSError(errno.EFBIG, "x"), 1, "error: the file would exceed the file size limit"),
    (PermissionError(errno.EACCES, "x", "a"), 1, "error: a: permission denied"),
])
def test_exit_codes(error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture,
                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script cannot find out what happened, or the user reads a traceback."""
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    with pytest.raises(SystemExit) as stop:
        run_stage(stop_with(error), argparse.Namespace(a=1))
    assert stop.value.code == code
    settings, line = capsys.readouterr().err.splitlines()
    assert settings == "stage.py: a=1"
    assert line.startswith(f"stage.py: {message}")


@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EBADF, "bug"), KeyError("bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    """A bug of ours is reported as a mistake of the user and cannot be found."""
    with pytest.raises(type(error), match="bug"):
        run_stage(stop_with(error), argparse.Namespace())


def test_sigterm_runs_every_finally() -> None:
    """`kill` leaves temporary files."""
    done: list[str] = []

    def stage(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(10)
        finally:
            done.append("cleaned")
    with pytest.raises(SystemExit) as stop:
        run_stage(stage, argparse.Namespace())
    assert stop.value.code == 143
    assert done == ["cleaned"]


# ------------------------------------------------------------------------------------------------------------
# Printing and names
# ------------------------------------------------------------------------------------------------------------

PRINTS = ("import argparse, pathlib, sys, pipeline.run.stage\n"
          "def stage(args):\n"
          "    print('caf\\xe9 \\u2026 \\udce9')\n"
          "    print('n\\xf6te', file=sys.stderr)\n"
          "    pathlib.Path(sys.argv[1]).touch()\n"
          "pipeline.run.stage.run_stage(stage, argparse.Namespace(name='\\xe4'), prints=len(sys.argv) > 2)\n")


def printed(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PRINTS, *map(str, arguments)], cwd=ROOT, timeout=60,
                          stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(("encoding", "shown"), [
    ("ascii", b"caf\\xe9 \\u2026 \\udce9\n"), ("latin-1", b"caf\xe9 \\u2026 \\udce9\n"),
    ("utf-8", "caf\xe9 \u2026 \\udce9\n".encode())])
def test_a_terminal_of_another_encoding(encoding: str, shown: bytes, tmp_path: Path) -> None:
    """The last line of a run that took hours ends in a traceback, and nothing is published."""
    done = printed(tmp_path / "end", stdout=subprocess.PIPE,
                   env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown
    assert (tmp_path / "end").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("kind", ["full", "left", "closed"])
def test_what_cannot_be_printed_fails_no_run(kind: str, unbuffered: str, tmp_path: Path) -> None:
    """`train.py | head`, or a full disk beneath its log, ends a run, or makes one that is done fail."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    if kind == "full":
        with open("/dev/full", "wb") as stdout:
            done = printed(tmp_path / "end", stdout=stdout, env=environment)
            result = printed(tmp_path / "result", "prints", stdout=stdout, env=environment)
        assert b"done; not all of its messages could be printed (No space left on device)" in done.stderr
        assert result.returncode == 1
        assert b"error: the result could not be printed (No space left on device)" in result.stderr
    elif kind == "left":
        read, write = os.pipe()
        os.close(read)
        done = printed(tmp_path / "end", stdout=write, env=environment)
        os.close(write)
    else:
        done = printed(tmp_path / "end", env=environment, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    assert (tmp_path / "end").exists()


def test_names_that_a_stage_cannot_write(capsys: pytest.CaptureFixture) -> None:
    """A folder with a name in an old encoding ends in a traceback of some library, after the work."""
    name = os.fsdecode(b"o\xe9")
    ran: list[str] = []
    args = argparse.Namespace(sources=["a", name], output_dir=Path(name))
    with pytest.raises(SystemExit):
        run_stage(lambda args: ran.append("not allowed"), args, any_bytes=("sources",))
    assert "error: --output_dir o\\xe9: holds bytes that are no text here" in capsys.readouterr().err
    run_stage(lambda args: ran.append("allowed"), args, any_bytes=("sources", "output_dir"))
    assert ran == ["allowed"]
