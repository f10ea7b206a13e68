"""Time and memory of whole processes, for the comparisons in this folder."""
import contextlib
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
POLL_SECONDS = 0.5  # summing PSS walks the page tables, which costs the measured process time
# Part of a program that trains with the library's Trainer: seconds from the end of the first step, which
# prepares its kernels, to the end of the last.
CLOCK = """
class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.begun = time.perf_counter()
        self.steps, self.ended = state.global_step - 1, time.perf_counter()
clock = Clock()
"""


@dataclass
class Run:
    """What one process and all its children took."""
    seconds: float
    peak_bytes: int  # the largest sum of their resident memory, shared pages counted once (PSS)
    peak_anonymous: int  # the same without pages of files, which the kernel can drop at any time
    peak_process: int  # the largest that one of them had
    output: str


def tree_memory(process: psutil.Process) -> tuple[int, int, int]:
    """Return the bytes of memory of a process and its children now: all, without pages of files, and of the
    largest."""
    total = anonymous = largest = 0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(OSError):  # it has ended
            for line in Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines():
                kind, *value = line.split()
                if kind in ("Pss:", "Pss_Anon:"):
                    total += 1024 * int(value[0]) * (kind == "Pss:")
                    anonymous += 1024 * int(value[0]) * (kind == "Pss_Anon:")
                    largest = max(largest, 1024 * int(value[0]))
    return total, anonymous, largest


def run(command: list[str | Path], **environment: str) -> Run:
    """Run a command to its end; CalledProcessError with its output if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env=os.environ | environment)
    peak, ended = [0, 0, 0], threading.Event()

    def watch() -> None:
        try:
            watched = psutil.Process(process.pid)
            while not ended.wait(POLL_SECONDS):
                peak[:] = map(max, peak, tree_memory(watched))
        except psutil.NoSuchProcess:
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Run(seconds, *peak, output)


def alternate(runs: int, **candidates: Callable[[], Run]) -> dict[str, list[Run]]:
    """Run the candidates in turn, A B A B ..., so that a machine that drifts is the same for all."""
    results: dict[str, list[Run]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, candidate in candidates.items():
            results[name].append(candidate())
    return results


def median(values: list[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]


def machine() -> str:
    """Return the machine and the versions on one line."""
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"


def skip(reason: str) -> None:
    """End a script that lacks what it measures on, saying so."""
    print(f"skipped: {reason}")
    sys.exit(0)
