"""pipeline/preparation/writing.py: which examples of a file are written, and the whole files beside them."""
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from preparation_runs import Prepared

from pipeline.data.clean_file import SPLITS
from pipeline.preparation.cleaning import is_trivial
from pipeline.preparation.splits import choose_split


def test_train_windows_slide_and_evaluation_windows_do_not_overlap(prepare: Callable[..., Prepared],
                                                                   texts: list[str]) -> None:
    """Positions of a test file count several times, or train loses examples."""
    data = prepare(texts)
    for split in ("validation", "test"):
        for line in data.lines[split]:
            completions = [completion for _, completion, number in data.rows[split] if number == line]
            prompts = [prompt for prompt, _, number in data.rows[split] if number == line]
            assert "".join([prompts[0], *completions]) == texts[line - 1]
            assert prompts[1:] == completions[:-1]
    per_file = {split: len(data.rows[split]) / len(data.lines[split]) for split in SPLITS}
    assert per_file["train"] > 2 * per_file["test"]


def test_examples_with_very_large_values_are_skipped(prepare: Callable[..., Prepared], texts: list[str],
                                                     kotlin_file: Callable[[int], str]) -> None:
    """Hundreds of digits reach the model, or the whole file is lost for one of them."""
    values = ["9" * 40, "x" * 200, "8" * 39 + "L", "y" * 199]
    files = [kotlin_file(80 + i, 30) + f"\nval big = \n {value}\n\n" + kotlin_file(90 + i, 30)
             for i, value in enumerate(values)]
    # in train, where a file of many examples is not cut to its part of a test
    digests = [hashlib.sha256(text.encode()).digest() for text in files]
    seed = next(seed for seed in range(1000)
                if {choose_split(digest, seed, 0.25, 0.25) for digest in digests} == {"train"})
    options = ("--chunk_tokens", 300, "--stride_tokens", 100, "--seed", seed)
    data = prepare([*texts, *files], *options)
    everything = prepare([*texts, *files], *options, "--keep_large_values", output="all")

    def holding(result: Prepared, value: str) -> bool:
        return any(value in prompt + completion
                   for rows in result.examples.values() for prompt, completion in rows)

    assert [holding(data, value) for value in values] == [False, False, True, True]
    assert all(holding(everything, value) for value in values)
    assert data.counts["examples skipped, very large value"] > 0
    assert everything.counts["examples skipped, very large value"] == 0
    assert {41, 42, 43, 44} <= set().union(*data.lines.values())  # the rest of these files serves


@pytest.mark.parametrize("options", [(), ("--keep_copyright", "--keep_large_values", "--keep_trivial")])
def test_each_example_stands_in_its_file(options: tuple, prepare: Callable[..., Prepared], texts: list[str],
                                         kotlin_file: Callable[[int], str]) -> None:
    """What stands before a cut is looked up in another place, or another file, than the example is from."""
    odd = ["/* Copyright 2020 A */\n" + kotlin_file(90), kotlin_file(91).replace("return", "🙂 𝔘 \u3000"),
           kotlin_file(92) + "9" * 50 + "\n" + kotlin_file(93)]
    data = prepare([*texts, *odd], *options)
    for split, rows in data.rows.items():
        files = {row["source_line"]: row["text"] for row in data.files[split]}
        for (prompt, completion, line), start in zip(rows, data.starts[split], strict=True):
            assert files[line][start:].startswith(prompt + completion)


def test_files_are_whole_clean_and_of_one_split(prepare: Callable[..., Prepared], texts: list[str],
                                                kotlin_file: Callable[[int], str]) -> None:
    """The model learns from copyright comments, copies, or files of the test split; or from pieces of
    files."""
    odd = ["/* Copyright 2020 A */\n" + kotlin_file(90), "// @generated\n" + kotlin_file(91), texts[3]]
    data = prepare([*texts, *odd])
    files = {row["source_line"]: row["text"] for rows in data.files.values() for row in rows}
    assert sum(map(len, data.files.values())) == len(files)  # no file in two splits
    assert {4, 41, 42, 43} & set(files) in ({4, 41}, {41, 43})  # of a file and its copy, one
    for line, text in files.items():
        assert text == [*texts, kotlin_file(90), None, texts[3]][line - 1]
    for split in SPLITS:
        assert data.lines[split] == {row["source_line"] for row in data.files[split]}


def test_files_say_where_they_came_from(prepare: Callable[..., Prepared], texts: list[str],
                                        tmp_path: Path) -> None:
    """Nobody can tell under which licence a file that was trained on is."""
    lines = [{"repository": f"https://h/{n % 3}.git", "commit": "c", "path": f"src/ü{n}.kt", "blob": "b",
              "license_file": "LICENSE" if n % 2 else None} for n in range(len(texts))]
    (tmp_path / "raw.provenance.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = prepare(["dropped\n", *texts[1:]])
    rows = [row for files in data.files.values() for row in files]
    assert {row["source_line"] for row in rows} == set(range(2, 41))
    for row in rows:
        found = {name: row[name] for name in ("repository", "path", "license_file")}
        line = lines[row["source_line"] - 1]
        assert found == {name: line[name] for name in found}
    assert set(row) == {"text", "source_line", *found}


def test_files_of_an_unknown_origin(prepare: Callable[..., Prepared], texts: list[str]) -> None:
    """A raw file of somebody's own, without provenance beside it, cannot be prepared."""
    data = prepare(texts)
    rows = [row for files in data.files.values() for row in files]
    assert len(rows) == 40
    assert {row[name] for row in rows for name in ("repository", "path", "license_file")} == {None}


@pytest.mark.parametrize(("content", "message"), [
    ('{"path": "a.kt"}\n' * 10, "line 11: not valid JSON"),
    ('{"path": 3}\n' * 40, "'path' is not of type str"),
    ('{"repository": "r"}\n' * 40, "no field 'path'")])
def test_provenance_of_another_file_is_one_line(content: str, message: str, prepare: Callable[..., Prepared],
                                                texts: list[str], tmp_path: Path,
                                                capfd: pytest.CaptureFixture) -> None:
    """Files get the licence of others, or a traceback comes of a file that was cut short."""
    (tmp_path / "raw.provenance.jsonl").write_text(content)
    with pytest.raises(SystemExit):
        prepare(texts)
    *_, last = capfd.readouterr().err.splitlines()
    assert "raw.provenance.jsonl, line " in last
    assert message in last
    assert not (tmp_path / "data").exists()


def test_trivial_completions_are_left_out_of_the_test_alone(prepare: Callable[..., Prepared],
                                                            kotlin_file: Callable[[int], str]) -> None:
    """The scores are those of guessing imports, or the model no longer learns to write them."""
    files = [f"package p{n}\n\n" + "".join(f"import p{n}.c{i * n}.D{i}\n" for i in range(20))
             + kotlin_file(n).partition("\n\n")[2] for n in range(40)]
    data, everything = prepare(files), prepare(files, "--keep_trivial", output="all")
    name = "test examples skipped, only imports or brackets"
    kept = [row for row in everything.rows["test"] if not is_trivial(row[1])]
    assert data.rows["test"] == kept
    assert data.counts[name] == len(everything.rows["test"]) - len(kept) > 9
    assert everything.counts[name] == 0
    for split in ("train", "validation"):
        assert data.rows[split] == everything.rows[split]
        assert any(is_trivial(completion) for _, completion in data.examples[split])
    assert data.files == everything.files  # what stands before a cut is there all the same
    for result in (data, everything):
        assert result.counts["examples in test"] == len(result.rows["test"])
        assert result.manifest["leakage"]["this data set"]["all"]["completions"] == len(result.rows["test"])
