"""pipeline/run/progress.py: what a batch job's log shows of work that takes minutes."""
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.progress import progress

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets so many seconds pass."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds
    return wait


def test_one_line_per_minute_where_there_is_no_terminal(clock: Callable[[float], None],
                                                        capsys: pytest.CaptureFixture) -> None:
    """Eleven minutes of silence in the log of a batch job: nobody knows whether it hangs."""
    with progress(desc="training", total=1000, unit=" steps") as bar:
        for _ in range(300):
            clock(1)
            bar.set_postfix({"loss": "2.05"}, refresh=False)
            bar.update(2)
    printed = capsys.readouterr().err
    lines = printed.split("\n")
    assert len(lines) == 6
    assert lines[0] == "training:  12% 120/1000 [01:00<07:20,  2.00 steps/s, loss=2.05]"
    assert lines[-2].startswith("training:  60% 600/1000 [05:00<03:20,  2.00 steps/s")
    assert lines[-1] == ""  # what follows begins a line of its own
    assert "\r" not in printed


def test_a_slow_stretch_is_seen(clock: Callable[[float], None], capsys: pytest.CaptureFixture) -> None:
    """After a fast minute nothing is printed until as many again are done."""
    with progress(desc="cleaning", total=10_000, unit=" files") as bar:
        for _ in range(60):
            clock(1)
            bar.update(100)
        for _ in range(5):
            clock(60)
            bar.update(1)
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_two_at_once_stay_lines(clock: Callable[[float], None], capsys: pytest.CaptureFixture) -> None:
    """The log of a step within another holds a terminal's control characters."""
    with progress(desc="outer", total=9, unit=" f"), progress(desc="inner", total=9, unit=" f") as bar:
        clock(61)
        bar.update(1)
    assert "\x1b" not in capsys.readouterr().err


def test_short_work_says_nothing(clock: Callable[[float], None], capsys: pytest.CaptureFixture) -> None:
    """A log is full of bars, one below another."""
    assert [*progress(range(59), desc="a", unit=" files")] == [*range(59)]
    for _ in progress(iter("abc"), desc="b"):
        clock(15)
    assert capsys.readouterr().err == ""


def test_what_is_not_known_is_left_out(clock: Callable[[float], None], capsys: pytest.CaptureFixture) -> None:
    """A division by nothing, or a time left that nobody can know."""
    items = progress(iter("abc"), desc="kotlin", unit=" files")
    for _ in items:
        clock(60)
    with progress(desc="cleaning", total=10_000_000, initial=5_000_000, unit="B", scaled=True) as bar:
        clock(100)
        bar.update(1_000_000)
    with progress(desc="fetching", bar_format="{desc}") as bar:
        clock(61)
        for _ in range(3):  # git says so several times per second
            bar.set_description_str("fetching: Receiving objects: 45% (9/20)", refresh=False)
            bar.update(0)
    with progress(desc="nothing", total=5) as bar:
        clock(61)
        bar.update(0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["kotlin: 1 files [01:00, 60.00s/ files]", "kotlin: 2 files [02:00, 60.00s/ files]",
                     "kotlin: 3 files [03:00, 60.00s/ files]",
                     "cleaning:  60% 6.00M/10.0M [01:40<06:40, 10.0kB/s]",
                     "fetching: Receiving objects: 45% (9/20)", "nothing:   0% 0/5 [01:01<?, ?/s]"]


def test_one_of_several_processes_prints(clock: Callable[[float], None],
                                         capsys: pytest.CaptureFixture) -> None:
    """Each line stands four times in the log of four processes."""
    with progress(desc="a", total=5, shown=False) as bar:
        clock(120)
        bar.update(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches a terminal sees lines, and waits a minute for the first."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(desc="a", total=5, unit=" files") as bar:
        bar.update(5)
    assert "a: 100%" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", None)  # closed by the caller
    assert [*progress("ab", desc="a")] == ["a", "b"]


def test_every_stage_shows_its_progress_this_way() -> None:
    """One stage is silent in a log, or fills it with bars."""
    code = [*ROOT.glob("*.py"), *ROOT.glob("pipeline/**/*.py")]
    users = {file.relative_to(ROOT).as_posix() for file in code
             if re.search(r"^from tqdm|^import tqdm", file.read_text(encoding="utf-8"), re.MULTILINE)}
    assert users == {"pipeline/run/progress.py"}
