"""Data sets whose files are about the same things: what the tests of repository context share."""
import json
import random
from pathlib import Path

from pipeline.preparation.writing import EXAMPLE, FILE

LINES, CHUNK_LINES = 24, 4
NAMES = ("harbour", "berth", "tide", "crane", "pilot", "ferry", "anchor", "beacon")


def source(number: int, lines: int = LINES) -> str:
    """Return the file of a number: about one of NAMES, as every eighth is, and otherwise its own."""
    draw, name = random.Random(number), NAMES[number % len(NAMES)]
    return "".join(f"val {name}{draw.choice('abcdef')}{draw.randrange(10**4)} = "
                   f"{name}Of({draw.randrange(10**4)})\n"
                   for _ in range(lines))


def save_repository(folder: Path, train: int = 24, validation: int = 4, test: int = 4,
                    copied: bool = False) -> Path:
    """Save a data set of files of LINES lines, cut every CHUNK_LINES lines, with a manifest; return its
    folder.

    `copied`: the first completion of the first test file stands in a file of train too, among much else.
    """
    from datasets import Dataset, DatasetDict

    splits, texts, line = {}, {}, 0
    for name, number in (("train", train), ("validation", validation), ("test", test)):
        files, pairs = [], []
        for _ in range(number):
            line += 1
            text = source(line)
            if copied and line == 1:
                head = source(train + validation + 1).splitlines(keepends=True)[:2 * CHUNK_LINES]
                text = "".join(head) + text + source(1001, 60)
            files.append({"text": text, "source_line": line, "repository": "https://example.org/port/code.git",
                          "path": f"src/{name}/File{line}.kt", "license_file": None})
            rows = text.splitlines(keepends=True)
            chunks = ["".join(rows[i:i + CHUNK_LINES]) for i in range(0, len(rows), CHUNK_LINES)]
            pairs += [{"prompt": chunks[i], "completion": chunks[i + 1], "source_line": line,
                       "start": len("".join(chunks[:i]))} for i in range(len(chunks) - 1)]
        splits[name] = Dataset.from_list(pairs, features=EXAMPLE)
        texts[name] = Dataset.from_list(files, features=FILE)
    DatasetDict(texts).save_to_disk(str(folder / "files"))
    DatasetDict(splits).save_to_disk(str(folder))
    manifest = {"manifest_version": 1, "arguments": {"chunk_tokens": 12}, "data_hash": f"port{train}",
                "outputs": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
