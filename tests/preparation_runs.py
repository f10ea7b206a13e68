"""What a run of preprocess_data.py reads and writes: what the tests of stage 2 share."""
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

FRACTIONS = ("--validation_fraction", "0.25", "--test_fraction", "0.25", "--chunk_tokens", "30",
             "--stride_tokens", "10", "--min_test_examples", "0")
PIECES = ("fun f() {\n", "    val a = 1\n", "}\n", "\r\n", "\u3000", "𝔘", "👨‍👩‍👧", "<|endoftext|>")
TEXTS = st.one_of(st.text(max_size=120), st.text(alphabet=" \n\t.({ab1é\U0001f600", max_size=200),
                  st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


class InlinePool:
    """A pool whose one worker is this process: starting another takes a second."""
    _processes = None

    def __init__(self, workers: int, mp_context: Any, initializer: Callable, initargs: tuple):
        initializer(*initargs)

    def submit(self, function: Callable, *arguments: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **options: Any) -> None:
        pass


class Prepared:
    """What a run wrote; of the `rows` of a split, where they begin in their files is in `starts`."""

    def __init__(self, folder: Path):
        import datasets

        data = datasets.load_from_disk(str(folder))
        self.features = {split: data[split].features for split in data}
        self.rows = {split: [(row["prompt"], row["completion"], row["source_line"]) for row in data[split]]
                     for split in data}
        self.starts = {split: data[split]["start"][:] for split in data}
        files = datasets.load_from_disk(str(folder / "files"))
        self.files = {split: list(files[split]) for split in files}
        self.examples = {split: [row[:2] for row in rows] for split, rows in self.rows.items()}
        self.lines = {split: {row[2] for row in rows} for split, rows in self.rows.items()}
        self.manifest = json.loads((folder / "manifest.json").read_bytes())
        self.counts = self.manifest["counts"]
        self.folder = folder
        self.dropped = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


def write_raw(path: Path, texts: list[str]) -> Path:
    """Write a raw file of these texts and return its path."""
    path.write_text("".join(json.dumps({"file_text": text}) + "\n" for text in texts))
    return path


def save_corpus(folder: Path) -> Path:
    """Save a raw file of 60 files that differ, and beside it a tokenizer of single bytes; return `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    generator = np.random.default_rng(0)
    with open(folder / "raw.jsonl", "w") as file:
        for _ in range(60):
            words = ["".join(chr(97 + c) for c in generator.integers(0, 26, size=6)) for _ in range(120)]
            triples = zip(words[::3], words[1::3], words[2::3], strict=True)
            text = "".join(f"val {a} = {b}({c})\n" for a, b, c in triples)
            file.write(json.dumps({"file_text": text}) + "\n")
    return folder


def arguments(corpus: Path, output: Path) -> list[str]:
    """Return the arguments of a run on what `save_corpus` saved."""
    return ["--input_file", str(corpus / "raw.jsonl"), "--output_dir", str(output),
            "--model_name_or_path", str(corpus / "tokenizer"),
            "--test_fraction", "0.2", "--validation_fraction", "0.2", "--num_proc", "1"]
