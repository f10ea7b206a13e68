"""Fixtures that several test files share."""
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
from parsing_runs import Repository, Result
from preparation_runs import FRACTIONS, InlinePool, Prepared, write_raw

ROOT = Path(__file__).resolve().parents[1]
# The files that take longest, in minutes; begun first, so that at the end no process waits for another.
LONGEST = ("test_faults.py", "test_hub_pipeline.py", "test_gpu.py", "test_train.py", "test_checkpoints.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of LONGEST first; the Makefile has xdist keep this order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than this one has cores: some tests wait, for processes of their own or for
    time to pass."""
    return 1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    """`run_stage` and `start_worker` set handlers: give pytest back its own after each test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def plain_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git without the settings of the user and the machine that run the tests."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs a script of this project as a user does, in `tmp_path`."""
    def run(script: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=tmp_path,
                              text=True, capture_output=True, timeout=120, **options)
    return run


@pytest.fixture
def error_line() -> Callable[[str], str]:
    """Return a function that takes a stage's stderr and returns its error: one line, after the settings."""
    def check(stderr: str) -> str:
        assert "Traceback" not in stderr, stderr
        _, *rest = stderr.splitlines()
        assert len(rest) == 1, stderr
        assert ": error: " in rest[0], stderr
        return rest[0]
    return check


@pytest.fixture(scope="session")
def kotlin_file() -> Callable[[int], str]:
    """Return a function that gives the text of the Kotlin file number N, unlike that of any other number."""
    def text(number: int, functions: int = 6) -> str:
        draw = random.Random(number)
        bodies = []
        for _ in range(functions):
            a, b, c = (draw.randrange(10**8) for _ in range(3))
            bodies.append(f"fun f{a}(x: Int): Int {{\n    return x * {b} + g{c}(x)\n}}\n")
        return f"package p{number}\n\n" + "\n".join(bodies)
    return text


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, kotlin_file: Callable[[int], str]) -> Path:
    """A folder that holds only tokenizer.json: a small byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([kotlin_file(number) for number in range(1000, 1010)], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def repository(tmp_path: Path, plain_git: None) -> Repository:
    """An empty git repository in the folder `code`."""
    return Repository(tmp_path / "code")


@pytest.fixture
def parse(tmp_path: Path, plain_git: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs parse_data.py in this process and returns what it wrote; no clone stays."""
    import parse_data

    monkeypatch.setattr(sys, "argv", ["parse_data.py"])
    monkeypatch.setattr("pipeline.sources.git.FIRST_DELAY_SECONDS", 0)

    def run(*locations: object, options: tuple = (), output: str = "out/raw.jsonl") -> Result:
        arguments = [*(f"--repo_url={x}" if str(x).startswith("-") else x for x in locations)]
        if not str(arguments[0]).startswith("--repo_url="):
            arguments.insert(0, "--repo_url")
        places = ("--clone_path", tmp_path / "clone", "--output_file", tmp_path / output)
        try:
            parse_data.main([str(argument) for argument in (*arguments, *options, *places)])
        finally:
            assert not (tmp_path / "clone").exists()
        return Result(tmp_path / output)
    return run


@pytest.fixture
def parse_failure(parse: Callable[..., Result], capfd: pytest.CaptureFixture,
                  error_line: Callable[[str], str], tmp_path: Path) -> Callable[..., str]:
    """Return a function that expects `parse` to fail and leave nothing; it returns the line that says why."""
    def run(*locations: object, options: tuple = (), hidden: str = "\0") -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            parse(*locations, options=options)
        assert stop.value.code == 1
        captured = capfd.readouterr()
        assert hidden not in captured.err + captured.out
        left = {p.name for p in (tmp_path / "out").iterdir()} - {".raw.jsonl.lock"}
        assert left in (set(), {"raw.jsonl", "raw.provenance.jsonl", "raw.manifest.json"})
        return error_line(captured.err)
    return run


@pytest.fixture(scope="session")
def texts(kotlin_file: Callable[[int], str]) -> list[str]:
    """The texts of 40 Kotlin files."""
    return [kotlin_file(number) for number in range(40)]


@pytest.fixture
def prepare(tmp_path: Path, tokenizer_folder: Path,
            monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prepared]:
    """Return a function that runs preprocess_data.py in this process on texts, or on a raw file (None)."""
    import preprocess_data

    monkeypatch.setattr("pipeline.preparation.workers.ProcessPoolExecutor", InlinePool)
    monkeypatch.setattr(sys, "argv", ["preprocess_data.py"])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def run(texts: list[str] | None, *options: object, output: str = "data") -> Prepared:
        if texts is not None:
            write_raw(tmp_path / "raw.jsonl", texts)
        places = ("--input_file", tmp_path / "raw.jsonl", "--output_dir", tmp_path / output,
                  "--model_name_or_path", tokenizer_folder)
        try:
            preprocess_data.main([str(argument) for argument in (*places, *FRACTIONS, *options)])
        finally:
            assert not list(tmp_path.glob(".*pipeline-*"))
        return Prepared(tmp_path / output)
    return run


@pytest.fixture(scope="session")
def one_thread() -> None:
    """One thread: the number is a setting that a resumed run must share, and tiny models need no more."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return tiny_models.save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """The folder of an adapter of `model_folder`."""
    return tiny_models.save_adapter(tmp_path_factory.mktemp("adapters") / "adapter", model_folder)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny data set: 12 examples to train on, 4 to validate on."""
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="session")
def files_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny data set with its whole files: 12 to train on, 4 to validate on."""
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "with_files", train=36, validation=12,
                                    files=True, pairs_per_file=3)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, model_folder: Path,
            adapter_folder: Path) -> SimpleNamespace:
    """What a benchmark reads: `base`, `adapter`, `merged` (with card and manifest), `data` and `codexglue`.

    The chunks of `data` have 12 tokens.
    """
    import merge_lora

    folder = tmp_path_factory.mktemp("benchmark")
    merge_lora.main(["--hf_repository", str(adapter_folder), "--output_dir", str(folder / "merged"),
                     "--verify", "off"])
    return SimpleNamespace(base=model_folder, adapter=adapter_folder, merged=folder / "merged",
                           data=tiny_models.save_dataset(folder / "data", chunk_tokens=12),
                           codexglue=tiny_models.save_codexglue(folder / "test.jsonl"))


@pytest.fixture
def short_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget for methods that fits tiny models."""
    from pipeline.tasks import codexglue

    monkeypatch.setattr(codexglue, "CODEXGLUE_MAX_NEW_TOKENS", 16)
