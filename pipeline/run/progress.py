"""Progress of what takes longer than a few seconds: a bar on a terminal, elsewhere a line a minute."""
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from pipeline.run.stage import duration

LINE_SECONDS = 60  # between two lines, where nobody sees a bar: in the log of a batch job


class ProgressLines:
    """What tqdm's bar is asked for here, where the output is no terminal: it prints a line every
    LINE_SECONDS, when it is told of progress; nothing of what is done sooner."""

    def __init__(self, items: Iterable | None, desc: str, total: int | None, initial: int, unit: str,
                 scaled: bool, shown: bool):
        self.items, self.desc, self.total, self.done, self.unit = items, desc, total, initial, unit
        self.scaled, self.shown, self.initial, self.postfix = scaled, shown, initial, ""
        if total is None and hasattr(items, "__len__"):
            self.total = len(items)
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.update(1)

    def update(self, number: int = 1) -> None:
        """Take notice that `number` more are done."""
        self.done += number
        self._print_line(self.line)

    def set_postfix(self, values: dict[str, str], refresh: bool = True) -> None:
        """Keep what is shown behind the line, as name=value."""
        self.postfix = "".join(f", {name}={value}" for name, value in values.items())

    def set_description_str(self, text: str) -> None:
        """Take notice of progress that is told in words."""
        self._print_line(lambda: f"{self.desc}: {text}")

    def close(self) -> None:
        """The end of it: the stage itself says what was done."""

    def line(self) -> str:
        """Return `done/total, rate, time left`, as far as they are known."""
        passed = time.monotonic() - self.began
        rate = (self.done - self.initial) / passed if passed else 0.0
        text = f"{self.desc}: {self._count(self.done)}"
        if self.total:
            text += f"/{self._count(self.total)}{self.unit} ({self.done / self.total:.0%})"
        else:
            text += self.unit
        text += f", {self._count(rate)}{self.unit}/s"
        if self.total and rate:
            text += f", {duration(max(0.0, self.total - self.done) / rate)} left"
        return text + self.postfix

    def _count(self, number: float) -> str:
        if self.scaled:
            return tqdm.format_sizeof(number)
        return f"{number:,}" if isinstance(number, int) else f"{number:,.2f}"

    def _print_line(self, line: Any) -> None:
        now = time.monotonic()
        if self.shown and now - self.printed >= LINE_SECONDS:
            self.printed = now
            print(line(), file=sys.stderr, flush=True)


def progress(items: Iterable | None = None, *, desc: str, total: int | None = None, initial: int = 0,
             unit: str = "", scaled: bool = False, shown: bool = True,
             bar_format: str | None = None) -> tqdm | ProgressLines:
    """Return tqdm's bar on standard error, over `items` or to be updated; `ProgressLines` where that is no
    terminal.

    `unit` begins with a space where it is a word; `scaled`: counts are shown as 1.2M.  Not `shown`: nothing
    is, as in all but one of several processes.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(items, desc=desc, total=total, initial=initial, unit=unit, unit_scale=scaled,
                    bar_format=bar_format, disable=not shown)
    return ProgressLines(items, desc, total, initial, unit, scaled, shown and sys.stderr is not None)


def print_above(text: str) -> None:
    """Print a line on standard error, above the bar where there is one."""
    if sys.stderr is not None:
        tqdm.write(text, file=sys.stderr)
