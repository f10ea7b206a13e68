"""Running a stage: its settings, its exit codes, signals, and the types of its arguments."""
import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, Terminated, disk_mistake, redact

EXIT_MISTAKE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143


def run_stage(stage: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Print the settings, call `stage(args)`, and turn the user's mistakes into one line and an exit code.

    Exit codes: 0 done, 1 a mistake that the user can mend, 130 Ctrl-C, 143 SIGTERM.  A bug keeps its
    traceback.
    """
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] else stage.__name__)
    name = program.parent.name if program.name == "__main__.py" else program.name  # python -m pipeline
    settings = ", ".join(f"{key}={value}" for key, value in public_arguments(args).items())
    arrived: list[int] = []

    def stop(signum: int, frame: object) -> None:
        # a library in another language may make some other error of what is raised here
        arrived.append(signum)
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    try:
        signal.signal(signal.SIGTERM, stop)
        # not where the caller has it ignored
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
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


def _exit(name: str, message: str, code: int) -> None:
    sys.stdout.flush()
    print(f"{name}: {redact(' '.join(message.split()))}", file=sys.stderr, flush=True)
    raise SystemExit(code)


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
