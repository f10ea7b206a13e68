"""Fixtures that several test files share."""
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
        return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=tmp_path, text=True,
                              capture_output=True, timeout=120, **options)
    return run


@pytest.fixture
def error_line() -> Callable[[str], str]:
    """Return a function that takes a stage's stderr and returns its error: one line, after the line of the settings."""
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
