"""Faults, tried one by one on every stage: what was promised when something fails, counted.

A tiny pipeline is built in a scratch folder.  Each fault runs one stage there in a process of its own, over
an output that an earlier run with other settings left, then looks at what is there, runs the same command
again without the fault, and compares with what an undisturbed run writes.

    kill       SIGTERM, SIGINT and SIGKILL before every file operation of the stage, and at moments spread
               over its run
    disk full  "no space left" at every file operation; a file size limit; a small tmpfs (as root)
    read-only  the output on a file system that is read-only (as root), or in folders without write permission
    damage     every file that the stage reads: missing, empty, cut in half, one byte short, single bits
               changed
    kept       the same for the checkpoints and the cached predictions that a repeated command goes on with
    twice      the same command while the first is at work, stopped at various points

Run:    python tests/faults.py
Quick:  python tests/faults.py --at_most 3
"""
import argparse
import contextlib
import errno
import hashlib
import importlib
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}
MOMENTS = 10  # over an undisturbed run, at which each signal is sent besides those at file operations
SIZES = 12  # of the file size limit, and of the tmpfs
FLIPS = 3  # bytes changed in each damaged file, one at a time
LIMIT_SECONDS = 120  # of one run; a stage that hangs is a defect
EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}
WRITING_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
PUT_OFF = ("matplotlib.backends.backend_agg", "peft.utils.transformers_weight_conversion",
           "transformers.models.llama.modeling_llama")  # what libraries load only when it is used
ALLOCATING_EVENTS = {"open", "os.mkdir", "os.rename"}  # a full disk does not keep files from being removed


class Stage(NamedTuple):
    """One stage in the scratch folder."""
    script: str
    arguments: tuple[str, ...]
    earlier: tuple[str, ...]  # what is added for the output that lies there before
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]  # files and folders
    # regular expression of the files, below the outputs, that an equal run writes again to the byte
    results: str
    again: tuple[str, ...] = ()  # what is added where the command is repeated
    kept: tuple[str, ...] = ()  # patterns of the files that a repeated command goes on with


TRAINING = ("--quantization", "none", "--precision", "float32", "--max_steps", "4", "--learning_rate", "0.05",
            "--max_train_samples", "16", "--max_validation_samples", "4", "--examples_per_step", "4",
            "--save_steps", "2", "--eval_steps", "2", "--tokens_per_batch", "512")
STAGES = (
    Stage("parse_data", ("--repo_url", "code", "--clone_path", "clone", "--output_file", "data/raw.jsonl"),
          ("--revision", "earlier"), ("code",),
          ("data/raw.jsonl", "data/raw.provenance.jsonl", "data/raw.manifest.json"), r".*\.jsonl"),
    Stage("preprocess_data", ("--input_file", "data/raw.jsonl", "--output_dir", "data/dataset",
                              "--model_name_or_path", "model", "--num_proc", "1", "--validation_fraction",
                              "0.2", "--test_fraction", "0.2", "--chunk_tokens", "30", "--stride_tokens",
                              "15"),
          ("--seed", "7"), ("data/raw.jsonl", "data/raw.provenance.jsonl", "data/raw.manifest.json", "model"),
          ("data/dataset",),
          r".*\.arrow"),
    Stage("train", ("--model_name_or_path", "model", "--dataset", "data/dataset", "--output_dir",
                    "models/adapter", *TRAINING),
          ("--seed", "7"), ("data/dataset", "model"), ("models/adapter",),
          r".*(\.safetensors|\.jsonl|adapter_config\.json)", ("--resume",),
          ("models/adapter.checkpoints/**/*",)),
    Stage("merge_lora", ("--hf_repository", "models/adapter", "--output_dir", "models/merged"),
          ("--dtype", "bfloat16"), ("models/adapter", "model"), ("models/merged",),
          r".*(\.safetensors|/config\.json)"),
    Stage("benchmarking", ("--hf_repository", "models/merged", "--base_model", "model", "--dataset",
                           "data/dataset", "--codexglue_file", "data/python.jsonl", "--sample", "3",
                           "--precision", "float32", "--output_dir", "results"),
          ("--max_new_tokens", "6"), ("models/merged", "model", "data/dataset", "data/python.jsonl"),
          ("results",), r".*/metrics\.json", (), ("results/predictions/*",)),
)


class Fault(NamedTuple):
    """What goes wrong in a run: an `action` at file operation `at` (from 1), or at `moment` seconds."""
    action: str = ""  # a signal's name, "ENOSPC" or "SIGSTOP"
    at: int = 0
    moment: float = 0.0
    file_size: int = 0


NO_FAULT = Fault()


class Run(NamedTuple):
    """What a run left: exit code (negative: the signal that ended it), screen, seconds, file operations."""
    code: int
    screen: str
    seconds: float
    operations: int
    allocations: int  # those of them that a full disk refuses
    lock: int  # the operation that opens the lock


# ------------------------------------------------------------------------------------------------------------
# One run, in a forked process: the libraries are imported once, by the parent
# ------------------------------------------------------------------------------------------------------------

class Started(NamedTuple):
    """A run under way: its process, what it says, and the file that counts its operations."""
    process: int
    screen: int  # a pipe: a file would be subject to the limits that are tried
    counter: int


def start(stage: Stage, folder: Path, arguments: tuple[str, ...], fault: Fault) -> Started:
    """Start a stage in `folder`."""
    screen, said = os.pipe()
    counter = os.memfd_create("operations")
    process = os.fork()
    if process:
        os.close(said)
        os.set_blocking(screen, False)
        return Started(process, screen, counter)
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
        os.dup2(said, 1)
        os.dup2(said, 2)
        if fault.file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, fault.file_size))
        sys.argv = [f"{stage.script}.py", *arguments]
        sys.addaudithook(make_hook(fault, str(folder), counter))
        importlib.import_module(stage.script).main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def make_hook(fault: Fault, folder: str, counter: int) -> Callable[[str, tuple], None]:
    """Return an audit hook that counts the operations that write below `folder`, and acts at one of them."""
    own, count, allocations, lock = os.getpid(), 0, 0, 0

    def hook(event: str, args: tuple) -> None:
        nonlocal count, allocations, lock
        if event == "open":
            if not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in WRITING_EVENTS:
            return
        if os.getpid() != own or not isinstance(args[0], (str, bytes, os.PathLike)):
            return
        if not os.path.abspath(os.fsdecode(args[0])).startswith(folder):
            return
        count += 1
        allocations += event in ALLOCATING_EVENTS
        lock = count if not lock and os.fsdecode(args[0]).endswith(".lock") else lock
        os.pwrite(counter, b"%9d %9d %9d" % (count, allocations, lock), 0)
        if fault.action == "ENOSPC":
            if event in ALLOCATING_EVENTS and allocations == fault.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(args[0]))
        elif count == fault.at:
            os.kill(own, getattr(signal, fault.action))
    return hook


def finish(started: Started, fault: Fault = NO_FAULT) -> Run:
    """Wait for the end of a run; `fault.moment` seconds after its first words, the fault's signal is sent."""
    began, first_words, said, sent = time.monotonic(), None, b"", not fault.moment
    while True:
        ended, status = os.waitpid(started.process, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            while block := os.read(started.screen, 1 << 16):
                said += block
        now = time.monotonic()
        if said and first_words is None:
            first_words = now
        if ended:
            break
        if not sent and first_words is not None and now - first_words >= fault.moment:
            os.kill(started.process, getattr(signal, fault.action))
            sent = True
        if now - began > LIMIT_SECONDS:
            os.killpg(started.process, signal.SIGKILL)
        time.sleep(0.002)
    counted = map(int, (os.pread(started.counter, 30, 0) or b"0 0 0").split())
    os.close(started.screen)
    os.close(started.counter)
    return Run(os.waitstatus_to_exitcode(status), said.decode(errors="replace"), now - (first_words or now),
               *counted)


def run(stage: Stage, folder: Path, arguments: tuple[str, ...], fault: Fault = NO_FAULT) -> Run:
    """Run a stage in `folder` with a fault, to its end."""
    return finish(start(stage, folder, arguments, fault), fault)


# ------------------------------------------------------------------------------------------------------------
# The scratch folder, and what is in it
# ------------------------------------------------------------------------------------------------------------

def make_inputs(folder: Path) -> None:
    """Write a git repository of two commits, a tiny model and a Python set."""
    import tiny_models

    (folder / "code" / "src").mkdir(parents=True)
    (folder / "data").mkdir()
    tiny_models.save_model(folder / "model", "llama")
    tiny_models.save_codexglue(folder / "data" / "python.jsonl", 4)
    git = ["git", "-C", str(folder / "code"), "-c", "user.name=t", "-c", "user.email=t@example.org", "-c",
           "commit.gpgsign=false"]
    environment = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run([*git, "init", "-q"], check=True, env=environment)
    for first, tag in ((0, "earlier"), (12, "now")):
        for number in range(first, first + 12):
            draw = random.Random(number)
            functions = [f"fun f{draw.randrange(10**6)}(x: Int): Int {{\n"
                         f"    return x * {draw.randrange(10**6)}\n}}\n" for _ in range(5)]
            text = f"package p{number}\n\n" + "\n".join(functions)
            (folder / "code" / "src" / f"File{number}.kt").write_text(text)
        subprocess.run([*git, "add", "."], check=True, env=environment)
        subprocess.run([*git, "commit", "-q", "-m", tag], check=True, env=environment)
        subprocess.run([*git, "tag", tag], check=True, env=environment)


def hashes(folder: Path, places: tuple[str, ...]) -> dict[str, str]:
    """Return {path below `folder`: SHA-256} of the files at `places`."""
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for place in places for file in files_at(folder / place)}


def files_at(place: Path) -> list[Path]:
    """Return the file, or the files in the folder, at `place`, in order."""
    return [file for file in ([place] if place.is_file() else sorted(place.rglob("*"))) if file.is_file()]


def results(folder: Path, stage: Stage) -> dict[str, str]:
    """Return the hashes of the stage's output that do not depend on when it ran."""
    return {name: digest for name, digest in hashes(folder, stage.outputs).items()
            if re.fullmatch(stage.results, name)}


def listing(folder: Path) -> set[str]:
    """Return every path in the folder but those of the code, the predictions, and what datasets keeps beside
    a data set that it read, under names with a hash."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names
            if not name.startswith("code/") and "/predictions/" not in name and "cache-" not in name}


def is_whole(folder: Path, stage: Stage) -> str | None:
    """Return what is wrong with an output that claims to be whole: what its manifest does not describe."""
    from pipeline.run.lineage import changed_file
    from pipeline.run.manifests import read_manifest

    manifest = read_manifest(folder / stage.outputs[0])
    if manifest is None:
        return "no manifest"
    return changed_file(folder / stage.outputs[0], manifest)


class Bench:
    """A stage with its inputs, an earlier output, and what an undisturbed run makes of them."""

    def __init__(self, stage: Stage, scratch: Path, template: Path):
        self.stage, self.scratch, self.template = stage, scratch, template
        self.before, self.input_hashes = results(template, stage), hashes(template, stage.inputs)
        with self.fresh() as folder:
            undisturbed = run(stage, folder, stage.arguments)
            if undisturbed.code:
                raise SystemExit(f"{stage.script}: the undisturbed run failed:\n{undisturbed.screen}")
            self.after, self.listing = results(folder, stage), listing(folder)
            self.undisturbed = undisturbed
        if self.before == self.after or not self.after:
            raise SystemExit(f"{stage.script}: the earlier output is no other than the new one, so that "
                             "nothing could be seen")

    @contextlib.contextmanager
    def fresh(self, place: Path | None = None) -> Iterator[Path]:
        """Yield a copy of the inputs and the earlier output."""
        folder = place or self.scratch / "work"
        shutil.copytree(self.template, folder, symlinks=True, dirs_exist_ok=place is not None)
        try:
            yield folder
        finally:
            if place is None:
                shutil.rmtree(folder)

    def state(self, folder: Path) -> str:
        """Return whether the output is the earlier one, the new one, or what else."""
        found = results(folder, self.stage)
        for name, expected in (("earlier", self.before), ("new", self.after)):
            if found == expected:
                return name
        aside = [(folder / place).with_name(f".{Path(place).name}.pipeline-previous")
                 for place in self.stage.outputs]
        if found.items() < self.after.items() and is_whole(folder, self.stage) is None:
            return "part"  # of train.py: the adapter, before its report is put beside it
        if not found and any(path.is_dir() for path in aside):
            return "aside"  # between two renames: the next start of a stage puts it back
        return "mixed"

    def repeat(self, folder: Path) -> str | None:
        """Run the command again without a fault and return what is wrong then, if anything."""
        again = run(self.stage, folder, self.stage.arguments + self.stage.again)
        if again.code:
            return f"the repeated command fails: {again.screen[-600:]}"
        if results(folder, self.stage) != self.after:
            return "the repeated command writes something else"
        if wrong := is_whole(folder, self.stage):
            return f"after the repeated command: {wrong}"
        if left := listing(folder) - self.listing:
            return f"left over: {', '.join(sorted(left))}"
        if hashes(folder, self.stage.inputs) != self.input_hashes:
            return "an input was changed"
        return None


def one_line(screen: str, script: str) -> str | None:
    """Return what is wrong with the screen of a run that failed: it has to end in one line of ours."""
    if "Traceback" in screen:
        return f"a traceback: {screen[-900:]}"
    last = screen.strip().splitlines()[-1] if screen.strip() else ""
    return None if last.startswith(f"{script}.py: ") else f"the last line is not ours: {last!r}"


# ------------------------------------------------------------------------------------------------------------
# The faults: each yields (kind, how it ended, defect or None)
# ------------------------------------------------------------------------------------------------------------

Outcome = tuple[str, str, str | None]


def spread(items: list, at_most: int) -> list:
    """Return at most so many of the items, evenly spread; 0: all."""
    if not at_most or len(items) <= at_most:
        return items
    return [items[(2 * i + 1) * len(items) // (2 * at_most)] for i in range(at_most)]


def after_interruption(bench: Bench, folder: Path, ended: Run, expected: int) -> tuple[str, str | None]:
    """Return how an interrupted run ended, and what is wrong, repeating the command."""
    script, state = bench.stage.script, bench.state(folder)
    defect = None
    if ended.code not in (expected, 0):
        defect = f"exit code {ended.code} and not {expected}: {ended.screen[-900:]}"
    elif ended.code > 0:
        defect = one_line(ended.screen, script)
    if not defect and state == "mixed":
        mixed = is_whole(folder, bench.stage)
        if mixed in (None, "no manifest"):
            defect = f"a mixture of two runs that passes for one ({mixed})"
    how = {"earlier": "the earlier output whole", "new": "the new output whole",
           "part": "the new adapter whole, its report not yet there",
           "aside": "the earlier output set aside, and put back",
           "mixed": "files of both runs, noticed by the manifest"}[state]
    if ended.code == 0 and state == "new":
        how = "no effect: the run went through"
    return how, defect or bench.repeat(folder)


def kills(bench: Bench, at_most: int) -> Iterator[Outcome]:
    """Kill the stage before every file operation, and at moments spread over its run."""
    for name in SIGNALS:
        faults = [Fault(name, at=at) for at in range(1, bench.undisturbed.operations + 1)]
        faults += [Fault(name, moment=bench.undisturbed.seconds * (i + 0.5) / MOMENTS)
                   for i in range(MOMENTS)]
        for fault in spread(faults, at_most):
            with bench.fresh() as folder:
                ended = run(bench.stage, folder, bench.stage.arguments, fault)
                how, defect = after_interruption(bench, folder, ended, EXIT_CODES[name])
                yield name, how, defect and f"{fault}: {defect}"


def full_disks(bench: Bench, at_most: int) -> Iterator[Outcome]:
    """Let the disk be full at every file operation; limit the size of a file; give it a small file system."""
    for at in spread(list(range(1, bench.undisturbed.allocations + 1)), at_most):
        fault = Fault("ENOSPC", at=at)
        with bench.fresh() as folder:
            ended = run(bench.stage, folder, bench.stage.arguments, fault)
            how, defect = after_interruption(bench, folder, ended, 1)
            yield "no space left", how, defect and f"{fault}: {defect}"
    with bench.fresh() as folder:
        run(bench.stage, folder, bench.stage.arguments)
        largest = max(file.stat().st_size for place in bench.stage.outputs
                      for file in files_at(folder / place))
    for i in spread(list(range(SIZES)), at_most):
        fault = Fault(file_size=512 + largest * i // SIZES)  # with less, not even a semaphore can be made
        with bench.fresh() as folder:
            ended = run(bench.stage, folder, bench.stage.arguments, fault)
            how, defect = after_interruption(bench, folder, ended, 1)
            yield "file size limit", how, defect and f"{fault}: {defect}"
    if not may_mount():
        return
    for i in spread(list(range(SIZES)), at_most):
        free = 4096 + 2 * largest * i // SIZES
        with mounted(bench) as place, bench.fresh(place) as folder:
            status = os.statvfs(place)
            remount(place, f"size={status.f_frsize * (status.f_blocks - status.f_bfree) + free}")
            ended = run(bench.stage, folder, bench.stage.arguments)
            remount(place, "size=1g")
            how, defect = after_interruption(bench, folder, ended, 1)
            yield "small tmpfs", how, defect and f"{free} bytes free: {defect}"


def read_only(bench: Bench, at_most: int) -> Iterator[Outcome]:
    """Let the outputs lie where nothing can be written."""
    if may_mount():
        with mounted(bench) as place, bench.fresh(place) as folder:
            remount(place, "ro")
            ended = run(bench.stage, folder, bench.stage.arguments)
            remount(place, "rw")
            how, defect = after_interruption(bench, folder, ended, 1)
            yield "read-only", how, "it did not fail" if not ended.code else defect
    elif os.getuid():
        with bench.fresh() as folder:
            parents = {(folder / place).parent for place in bench.stage.outputs}
            for parent in parents:
                parent.chmod(0o555)
            ended = run(bench.stage, folder, bench.stage.arguments)
            for parent in parents:
                parent.chmod(0o755)
            how, defect = after_interruption(bench, folder, ended, 1)
            yield "read-only", how, "it did not fail" if not ended.code else defect


def metrics_of(folder: Path) -> str:
    """Return the text of what the benchmark says of its inputs."""
    return (folder / "results" / "manifest.json").read_text()


def damage(file: Path, how: str | int) -> str:
    """Damage a file and return what was done to it."""
    data, draw = file.read_bytes(), random.Random(f"{file.name} {how}")
    if how == "missing":
        file.unlink()
    elif isinstance(how, int) and data:
        place = draw.randrange(len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1:])
        return f"{file.name}, a bit of byte {place}"
    else:
        kept = {"empty": 0, "half": len(data) // 2, "one byte short": len(data) - 1}.get(how, 0)
        file.write_bytes(data[:kept])
    return f"{file.name}, {how}"


DAMAGES = ("missing", "empty", "half", "one byte short", *range(FLIPS))


def kept_damages(bench: Bench, at_most: int) -> Iterator[Outcome]:
    """Stop the stage late, damage a file of those that it would go on with, and repeat the command: the
    result is the same."""
    with bench.fresh() as folder:
        run(bench.stage, folder, bench.stage.arguments,
            Fault("SIGTERM", at=bench.undisturbed.operations * 3 // 4))
        names = [str(file.relative_to(folder)) for pattern in bench.stage.kept
                 for file in sorted(folder.glob(pattern)) if file.is_file()]
    for name, how in spread([(name, how) for name in names for how in DAMAGES], at_most):
        with bench.fresh() as folder:
            run(bench.stage, folder, bench.stage.arguments,
                Fault("SIGTERM", at=bench.undisturbed.operations * 3 // 4))
            label = damage(folder / name, how)
            defect = bench.repeat(folder)
            yield ("damaged checkpoint or cache", "noticed, or harmless: the same result",
                   defect and f"{label}: {defect}")


def damages(bench: Bench, at_most: int) -> Iterator[Outcome]:
    """Damage every file that the stage reads; each damage has to be named, or to change nothing."""
    names = [name for name in bench.input_hashes if not name.startswith("code/")]
    for name, how in spread([(name, how) for name in names for how in DAMAGES], at_most):
        with bench.fresh() as folder:
            label = f"{Path(name).parent}/{damage(folder / name, how)}"
            ended = run(bench.stage, folder, bench.stage.arguments)
            kind = f"damaged input: {'bit changed' if isinstance(how, int) else 'cut short or missing'}"
            if ended.code:
                defect = one_line(ended.screen, bench.stage.script)
                if not defect and bench.state(folder) != "earlier":
                    defect = f"it failed, and the output is {bench.state(folder)}"
                yield kind, "named, and nothing replaced", defect and f"{label}: {defect}"
            elif results(folder, bench.stage) == bench.after:
                yield kind, "harmless: the same result", None
            elif "WARNING" in ended.screen or "note:" in ended.screen:
                yield kind, "named, and gone on", None
            elif (name == "data/python.jsonl"
                  and hashlib.sha256((folder / name).read_bytes()).hexdigest() in metrics_of(folder)):
                yield kind, "a file of the user's own: the result names the file's hash", None
            elif name.startswith("model/"):
                yield kind, "NOT NOTICED: a base model without hashes", None
            else:
                yield kind, "another result, and nothing said", f"{label}: another result, and nothing said"


def twice(bench: Bench, at_most: int) -> Iterator[Outcome]:
    """Stop the stage at a file operation after its lock, start the same command, and let the first go on."""
    for at in spread(list(range(bench.undisturbed.lock + 1, bench.undisturbed.operations)), at_most):
        with bench.fresh() as folder:
            first = start(bench.stage, folder, bench.stage.arguments, Fault("SIGSTOP", at=at))
            os.waitpid(first.process, os.WUNTRACED)
            second = run(bench.stage, folder, bench.stage.arguments)
            os.kill(first.process, signal.SIGCONT)
            ended = finish(first)
            defect = one_line(second.screen, bench.stage.script)
            if second.code != 1 or "another " not in second.screen:
                defect = f"the second ended with {second.code}: {second.screen[-400:]}"
            if ended.code or results(folder, bench.stage) != bench.after:
                defect = f"the first ended with {ended.code}, or with another result: {ended.screen[-400:]}"
            yield ("two at once", "the second refused, the first's result whole",
                   defect and f"at operation {at}: {defect}")


KINDS = {"kill": kills, "disk": full_disks, "read_only": read_only, "damage": damages, "kept": kept_damages,
         "twice": twice}


def may_mount() -> bool:
    """Return whether a tmpfs can be mounted here."""
    with tempfile.TemporaryDirectory() as place:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True,
                          check=False).returncode:
            return False
        subprocess.run(["umount", place], check=True)
    return True


@contextlib.contextmanager
def mounted(bench: Bench) -> Iterator[Path]:
    """Yield the mount point of a tmpfs."""
    place = bench.scratch / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", str(place)], check=True)
    try:
        yield place
    finally:
        for _ in range(100):  # processes of a stage that was killed end a moment after it
            if subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        place.rmdir()


def remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


# ------------------------------------------------------------------------------------------------------------
# The count
# ------------------------------------------------------------------------------------------------------------

def table(counts: dict[str, Counter], defects: Counter) -> Iterator[str]:
    """Yield the Markdown table of what was tried, and how it ended."""
    yield "| fault | tried | how it ended | defects |"
    yield "|---|---:|---|---:|"
    for kind, ways in counts.items():
        ended = "; ".join(f"{number} × {how}" for how, number in ways.most_common())
        yield f"| {kind} | {sum(ways.values())} | {ended} | {defects[kind]} |"
    yield f"| all | {sum(sum(ways.values()) for ways in counts.values())} | | {sum(defects.values())} |"


def prepare_process(scratch: Path) -> None:
    """Let nothing outside `scratch` matter, and import what the stages need once."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf"), "GIT_CONFIG_GLOBAL": "/dev/null",
                   "GIT_CONFIG_NOSYSTEM": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
                   "MPLCONFIGDIR": str(scratch / "matplotlib")}
    sys.path[:0] = [str(ROOT)]
    os.environ["PYTHONPATH"] = str(ROOT)
    import pipeline

    # Before the forks: a stage loads its modules, and with them the libraries, only when it runs.
    modules = [module.name for module in pkgutil.walk_packages(pipeline.__path__, "pipeline.")]
    for name in (*modules, *(stage.script for stage in STAGES), *PUT_OFF):
        importlib.import_module(name)


def try_faults(scratch: Path, stages: list[str], kinds: list[str],
               at_most: int) -> tuple[dict[str, Counter], list[str], Counter]:
    """Try the faults and return the counts by kind, the defects, and their counts."""
    from tqdm import tqdm

    template = scratch / "template"
    make_inputs(template)
    counts: dict[str, Counter] = defaultdict(Counter)
    defects, number = [], Counter()
    for stage in STAGES:
        earlier = run(stage, template, stage.arguments + stage.earlier)
        if earlier.code:
            raise SystemExit(f"{stage.script}: the earlier run failed:\n{earlier.screen}")
        if stage.script in stages:
            bench = Bench(stage, scratch, template)
            for kind in kinds:
                for label, how, defect in tqdm(KINDS[kind](bench, at_most), desc=f"{stage.script}, {kind}",
                                               unit=" faults", disable=None):
                    counts[label]["DEFECT" if defect else how] += 1
                    number[label] += bool(defect)
                    if defect:
                        defects.append(f"{stage.script}, {label}: {defect}")
                        tqdm.write(defects[-1], file=sys.stderr)
        shutil.rmtree(template / stage.outputs[0], ignore_errors=True)
        final = run(stage, template, stage.arguments)  # what the next stage reads
        if final.code:
            raise SystemExit(f"{stage.script}: the run for the next stage failed:\n{final.screen}")
    return counts, defects, number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stage.script for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="(default: all)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="(default: all)")
    parser.add_argument("--at_most", type=int, default=0,
                        help="of each kind and stage, evenly spread; 0: all (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        prepare_process(Path(scratch))
        counts, defects, number = try_faults(Path(scratch).resolve(), args.stages, args.kinds, args.at_most)
    print("\n".join(table(counts, number)))
    if not may_mount():
        print("not tried: a small tmpfs and a read-only file system, which take root")
    if defects:
        sys.exit(f"{len(defects)} defects:\n" + "\n".join(defects))


if __name__ == "__main__":
    main()
