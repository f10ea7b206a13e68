"""Running a stage: its settings, exit codes and signals, and the types of its arguments."""
import argparse
import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.run.errors import PipelineError, Terminated, disk_mistake, redact, shown_path

EXIT_MISTAKE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143


class Printing:
    """A stream whose writes never fail: what a full disk or a closed pipe refuses is dropped, and `fault`
    holds the error."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.fault = stream, None
        if isinstance(stream, io.TextIOWrapper):  # a terminal of ASCII or Latin-1, a path that is not UTF-8
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Print `text`; return its length."""
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt(self.stream.flush)

    def _attempt(self, call: Callable, *arguments: str) -> None:
        if self.fault is None:
            try:
                call(*arguments)
            except OSError as error:
                self.fault = error
                with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), self.stream.fileno())  # Python flushes it once more at exit


@contextlib.contextmanager
def _guarded_streams() -> Iterator[None]:
    kept = sys.stdout, sys.stderr  # None where the caller has closed one
    sys.stdout, sys.stderr = (stream and Printing(stream) for stream in kept)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept


def run_stage(stage: Callable[[argparse.Namespace], None], args: argparse.Namespace,
              any_bytes: Collection[str] = (), prints: bool = False) -> None:
    """Print the settings, call `stage(args)`, and turn the user's errors into one line and an exit code.

    `any_bytes` names the arguments whose paths may hold bytes that are not text; in others, the libraries
    that write models and data sets fail on them.  `prints`: the stage's result is what it prints.
    Exit codes: 0 done, 1 an error that the user can fix, 130 Ctrl-C, 143 SIGTERM.  A bug keeps its
    traceback.
    """
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] else stage.__name__)
    name = program.parent.name if program.name == "__main__.py" else program.name  # python -m pipeline
    with _guarded_streams():
        _run(stage, args, name, any_bytes)
        if sys.stdout is None:
            return
        sys.stdout.flush()
        fault = sys.stdout.fault
        if fault is not None and not isinstance(fault, BrokenPipeError):  # a closed pipe, such as `| head`
            if prints:
                _exit(name, f"error: the result could not be printed ({fault.strerror}); print it elsewhere",
                      EXIT_MISTAKE)
            print(f"{name}: done; not all of its messages could be printed ({fault.strerror})",
                  file=sys.stderr)


def _run(stage: Callable[[argparse.Namespace], None], args: argparse.Namespace, name: str,
         any_bytes: Collection[str]) -> None:
    settings = ", ".join(f"{key}={value}" for key, value in public_arguments(args).items())
    arrived: list[int] = []

    def stop(signum: int, frame: object) -> None:
        # a library in another language may turn what is raised here into another error
        arrived.append(signum)
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    try:
        signal.signal(signal.SIGTERM, stop)
        # not where the caller has it ignored
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
        if os.environ.get("RANK", "0") == "0":  # one of several processes prints
            print(f"{name}: {settings}", file=sys.stderr, flush=True)
        _refuse_bytes(args, any_bytes)
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


def _refuse_bytes(args: argparse.Namespace, any_bytes: Collection[str]) -> None:
    """Raise PipelineError where an argument not in `any_bytes` holds bytes that are not text."""
    for key, value in vars(args).items():
        for text in map(str, value if isinstance(value, (list, tuple)) else [value]):
            if key not in any_bytes and not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text):
                raise PipelineError(f"--{key} {shown_path(text)}: holds bytes that are no text here "
                                    f"({sys.getfilesystemencoding()}); rename it, or go by a link of another "
                                    "name")


def _exit(name: str, message: str, code: int) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    print(f"{name}: {redact(' '.join(message.split()))}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def public_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as JSON values, in order, with secrets removed."""
    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return redact(str(value)) if isinstance(value, (str, Path)) else value
    return {key: plain(value) for key, value in vars(args).items()}


def note(text: str) -> None:
    """Print a note on standard error, from the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)


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


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    return 1.0 if text.strip() in ("1", "1.0") else fraction(text)


def positive_number(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
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


def count_or(word: str) -> Callable[[str], int | None]:
    """argparse type: a whole number of at least 1, or the word, which becomes None."""
    def count(text: str) -> int | None:
        if text == word:
            return None
        if not text.strip().isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} is neither {word} nor a whole number of at least 1")
        return int(text)
    return count
