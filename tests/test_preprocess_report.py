"""preprocess_data.py: what it says about leakage, what one can look at, what it publishes."""
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import READ_TOKEN, WRITE_TOKEN, Hub

import preprocess_data
from preprocess_data import CleanFile, Statistics, boundary_kind, fenced, is_trivial, measure_leakage

ROOT = Path(__file__).resolve().parents[1]


def a_file(line: int, words: list[int], text: str) -> CleanFile:
    """Return a file whose tokens are `words` and whose text has one character a token, with one window over its second half."""
    assert len(words) == len(text)
    half = len(words) // 2
    windows = np.array([[0, half, len(words), 0, half, len(words)]])
    return CleanFile(line, None, b"%d" % line, text, windows, windows, np.array(words, dtype=np.uint16))


def leakage_of(files: list[CleanFile], splits: list[str | None]) -> dict:
    def read() -> Iterator[CleanFile]:
        return iter(files)
    return measure_leakage(read, {"way": splits}, keep_large_values=True)["way"]["all"]


def test_a_copied_completion_is_reported() -> None:
    """A test completion that stands in train goes unnoticed."""
    text = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
    words = list(range(len(text)))
    original, copy = a_file(1, words, text), a_file(2, words, text)
    found = leakage_of([original, copy], ["train", "test"])
    assert found == {"completions": 1, "verbatim_in_train": 1.0, "any_13_gram_in_train": 1.0, "mean_share_of_13_grams_in_train": 1.0}


def test_a_foreign_completion_is_not_reported() -> None:
    """Clean data is called contaminated."""
    first = a_file(1, list(range(40)), "a" * 40)
    second = a_file(2, list(range(100, 140)), "b" * 40)
    assert leakage_of([first, second], ["train", "test"])["any_13_gram_in_train"] == 0
    assert leakage_of([first, second], ["train", "test"])["verbatim_in_train"] == 0


def test_a_shared_run_is_counted_but_is_not_verbatim() -> None:
    """A run of 13 tokens in common is missed, or taken for a copy of the whole."""
    train = a_file(1, [*range(500, 520), *range(13), *range(600, 607)], "t" * 40)
    test = a_file(2, [*range(700, 720), *range(13), *range(800, 807)], "u" * 40)
    found = leakage_of([train, test], ["train", "test"])
    assert (found["verbatim_in_train"], found["any_13_gram_in_train"]) == (0.0, 1.0)
    assert found["mean_share_of_13_grams_in_train"] == pytest.approx(1 / 8, abs=1e-4)  # 20 tokens hold 8 runs of 13


def test_dropped_and_validation_files_are_not_train() -> None:
    """A copy that was dropped, or is in validation, is reported as leakage."""
    words = list(range(40))
    files = [a_file(1, words, "a" * 40), a_file(2, words, "a" * 40), a_file(3, words, "a" * 40)]
    assert leakage_of(files, ["validation", None, "test"])["verbatim_in_train"] == 0


def test_short_completions_are_searched_too() -> None:
    """A completion of fewer than 13 tokens is never found."""
    files = [a_file(1, list(range(10)), "zabcdefghi"), a_file(2, list(range(6)), "xyzdef")]
    assert leakage_of(files, ["train", "test"])["verbatim_in_train"] == 1


@pytest.mark.parametrize(("text", "trivial"), [
    ("import a.b.C\nimport d.E\n", True), ("    }\n}\n", True), ("jetbrains.kotlin.psi\nimport a.b\n", True), ("", True),
    ("package a\n", True),
    ("    return x\n}\n", False), ("val a = 1", False), ("import a\nfun f() {}", False),
])
def test_trivial_completions(text: str, trivial: bool) -> None:
    """The leakage of real code is hidden behind imports and closing braces."""
    assert is_trivial(text) is trivial


@pytest.mark.parametrize(("text", "cut", "kind"), [
    ("a b", 1, "before white space within a line"), ("a\nb", 1, "at the end of a line"), ("a\nb", 2, "at the start of a line"),
    ("a(b", 2, "behind ("), ("a{ b", 2, "behind {"), ("ab", 1, "within a word"), ("ab", 2, "within a word"),
])
def test_boundary_kinds(text: str, cut: int, kind: str) -> None:
    """The report names the wrong kind of place."""
    assert boundary_kind(text, cut) == kind


def test_length_quantiles() -> None:
    """The report's lengths are not those of the examples."""
    statistics = Statistics(chunk_tokens=10)
    statistics.add("x" * 100, np.array([[0, 50, 100, 0, n, n + 5] for n in range(1, 10)]))
    assert statistics.quantiles("prompt") == {"min": 1, "25 %": 3, "median": 5, "75 %": 7, "max": 9}
    assert set(statistics.quantiles("completion").values()) == {5}
    assert statistics.boundaries == Counter({"within a word": 9})


def test_an_example_cannot_close_its_code_block() -> None:
    """An example with Markdown fences breaks the report."""
    assert fenced("a\n```\nb") == ["````", "a\n```\nb", "````", ""]


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw file of 60 files that differ, and a tokenizer of single bytes beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("corpus")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    generator = np.random.default_rng(0)
    with open(folder / "raw.jsonl", "w") as file:
        for _ in range(60):
            words = ["".join(chr(97 + c) for c in generator.integers(0, 26, size=6)) for _ in range(120)]
            text = "".join(f"val {a} = {b}({c})\n" for a, b, c in zip(words[::3], words[1::3], words[2::3], strict=True))
            file.write(json.dumps({"file_text": text}) + "\n")
    return folder


def arguments(corpus: Path, output: Path) -> list[str]:
    return ["--input_file", str(corpus / "raw.jsonl"), "--output_dir", str(output), "--model_name_or_path", str(corpus / "tokenizer"),
            "--test_fraction", "0.2", "--validation_fraction", "0.2", "--num_proc", "1"]


def test_report_and_pictures_are_written(small_corpus: Path, tmp_path: Path) -> None:
    """There is nothing to look at, or it is not what is in the data."""
    import datasets

    preprocess_data.main(arguments(small_corpus, tmp_path / "data"))
    report = (tmp_path / "data" / "report.md").read_text()
    data = datasets.load_from_disk(str(tmp_path / "data"))
    assert f"| examples in train | {len(data['train']):,} |" in report
    assert "| this data set | all |" in report
    assert report.count("Completion:") == 5
    assert (tmp_path / "data" / "report.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["leakage"]["this data set"]["all"]["completions"] == len(data["test"])
    assert not list(tmp_path.glob(".data.pipeline*"))


def test_published_data_set_is_what_is_on_disk(small_corpus: Path, tmp_path: Path) -> None:
    """The hub gets other examples, several commits, or no card; or load_dataset cannot read what it got."""
    with Hub() as hub:
        environment = hub.environment(tmp_path / "cache")
        command = [sys.executable, str(ROOT / "preprocess_data.py"), *arguments(small_corpus, tmp_path / "data"), "--hf_repository"]

        def publish(name: str, token: str) -> subprocess.CompletedProcess:
            return subprocess.run([*command, name], env=environment | {"HF_TOKEN": token}, capture_output=True, text=True)

        refused = publish("tester/data", READ_TOKEN)
        assert refused.returncode == 1
        assert "the token may only read" in refused.stderr
        assert not (tmp_path / "data").exists()  # before the work, not after it
        done = publish("tester/data", WRITE_TOKEN)
        assert done.returncode == 0, done.stderr
        repository = hub.repository("tester/data", "dataset")
        assert [commit.title for commit in repository.commits.values()] == ["initial commit", "Add the data set"]
        files = repository.head.files
        assert files["raw/raw.jsonl"].content == (small_corpus / "raw.jsonl").read_bytes()
        assert b"## Leakage" in files["README.md"].content
        check = ("import datasets, sys; a = datasets.load_dataset('tester/data'); b = datasets.load_from_disk(sys.argv[1]);"
                 "assert all(a[s][:] == b[s][:] for s in ('train', 'validation', 'test')) and len(a) == 3")
        subprocess.run([sys.executable, "-c", check, str(tmp_path / "data")], env=environment, check=True, capture_output=True)
        assert not (tmp_path / "data.hub").exists()
        assert WRITE_TOKEN not in done.stdout + done.stderr
