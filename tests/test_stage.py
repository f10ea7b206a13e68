"""pipeline/stage.py: what the user reads and the shell gets when a stage ends, and the types of arguments."""
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

from pipeline.errors import PipelineError, Terminated
from pipeline.stage import duration, fraction, non_negative_int, positive_int, public_arguments, run_stage

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_a_library_makes_another_error_of(number: str, code: int) -> None:
    """Ctrl-C during a load ends in a traceback, or as a damaged file."""
    for error in ("ValueError('could not determine the shape')",
                  "pipeline.errors.PipelineError('the file is damaged')"):
        program = ("import argparse, os, signal, sys, pipeline.errors, pipeline.stage\n"
                   "def stage(args):\n    try:\n"
                   f"        os.kill(os.getpid(), signal.{number})\n        signal.pause()\n"
                   f"    except BaseException:\n        raise {error} from None\n"
                   "pipeline.stage.run_stage(stage, argparse.Namespace())\n")
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
    """A shell script cannot tell what happened, or the user reads a traceback."""
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
    """`kill` leaves temporary files behind."""
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
