"""Progress of what takes longer than a few seconds: a bar on a terminal, elsewhere one line per minute."""
import sys
from collections.abc import Iterable

from tqdm import tqdm

LINE_SECONDS = 60  # between two lines where there is no terminal: in the log of a batch job


class _Log:
    """Standard error as a file for tqdm, which rewrites its line: each state is a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():  # without the return to the line's start, and the spaces that clear it
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Nothing: each line is flushed when it is written."""


def progress(items: Iterable | None = None, *, desc: str, total: int | None = None, initial: int = 0,
             unit: str = "", scaled: bool = False, shown: bool = True,
             bar_format: str | None = None) -> tqdm:
    """Return a tqdm bar on standard error, over `items` or to be updated by the caller.

    Where standard error is no terminal, it prints the same figures, without the bar, as one line per
    LINE_SECONDS at most, and nothing for what takes less.  Words that change are set with `refresh=False`
    and shown by the next update.

    `unit` begins with a space where it is a word; `scaled`: counts are shown as 1.2M.  Not `shown`: nothing
    is printed, as in all but one of several processes.
    """
    # miniters: every update looks at the clock; tqdm's estimate of when to look again is late after a stall
    log = {} if sys.stderr is None or sys.stderr.isatty() else {
        "file": _Log(), "mininterval": LINE_SECONDS, "delay": LINE_SECONDS, "miniters": 0, "ncols": 0,
        "leave": False, "position": 0}  # else a bar beside another moves the cursor, which a log cannot
    return tqdm(items, desc=desc, total=total, initial=initial, unit=unit, unit_scale=scaled,
                bar_format=bar_format, disable=not shown or sys.stderr is None, **log)


def print_above(text: str) -> None:
    """Print a line on standard error, above the bar where there is one."""
    if sys.stderr is not None:
        tqdm.write(text, file=sys.stderr)
