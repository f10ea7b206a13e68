"""pipeline/evaluation/rows.py: what a rerun finds of a run that was interrupted, and of several processes."""
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_runs import arguments, prediction_files

import benchmarking
from pipeline.decoding.greedy import generate_within_memory
from pipeline.evaluation import comparison, predictions
from pipeline.tasks import codexglue

pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")


def count_prompts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every batch that is decoded from now on appends the number of its prompts."""
    made = []

    def generate(part: Any, prompts: list[list[int]], at_most: int) -> tuple[list[dict[str, Any]], int]:
        made.append(len(prompts))
        return generate_within_memory(part, prompts, at_most)

    monkeypatch.setattr(predictions, "generate_within_memory", generate)
    return made


def test_an_interrupted_run_goes_on_to_the_same_files(folders: SimpleNamespace, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture) -> None:
    """A rerun starts from nothing, keeps a torn prediction, or predicts something twice."""
    output = tmp_path / "results"
    benchmarking.main(arguments(folders, output, "--sample", 5))
    whole = {file: file.read_bytes() for file in prediction_files(output)}
    metrics = json.loads((output / "metrics.json").read_text())
    for number, (file, content) in enumerate(sorted(whole.items())):
        lines = content.splitlines(keepends=True)
        file.write_bytes([content[:-7], b"".join(lines[:4]), lines[0][:20],
                          b"".join(lines[:3]) + b'{"id": 1'][number])
    made = count_prompts(monkeypatch)
    benchmarking.main(arguments(folders, output, "--sample", 5))
    assert {file: file.read_bytes() for file in prediction_files(output)} == whole
    assert made == [2, 1, 1, 2, 1, 2, 2, 1]  # only what was missing
    assert json.loads((output / "metrics.json").read_text()) == metrics

    monkeypatch.setattr(comparison, "load_model", None)  # nothing is missing: no model is loaded
    benchmarking.main(arguments(folders, output, "--sample", 5))
    assert "5 of 5 examples found" in capsys.readouterr().err
    monkeypatch.undo()
    # another budget: other predictions, the old ones stay
    monkeypatch.setattr(codexglue, "CODEXGLUE_MAX_NEW_TOKENS", 5)
    benchmarking.main(arguments(folders, output, "--sample", 5))
    now = {file: file.read_bytes() for file in prediction_files(output)}
    assert len(now) == 6
    assert whole.items() <= now.items()


def test_what_several_processes_left_is_found_again(folders: SimpleNamespace, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a run of several processes that was killed are lost, taken twice, or end in another order."""
    output = tmp_path / "results"
    benchmarking.main(arguments(folders, output, "--batch_size", 1))
    whole = {file: file.read_bytes() for file in (output / "predictions").iterdir()}
    for file in prediction_files(output):
        header, *rows = whole[file].splitlines(keepends=True)
        file.write_bytes(header + rows[0])
        Path(f"{file}.part0").write_bytes(header + rows[4])
        Path(f"{file}.part1").write_bytes(header + rows[0] + rows[2] + rows[3][:9])
    made = count_prompts(monkeypatch)
    benchmarking.main(arguments(folders, output, "--batch_size", 1))
    assert made == [1] * 12  # rows 1, 3 and 5 of each of the four
    assert {file: file.read_bytes() for file in (output / "predictions").iterdir()} == whole


def test_a_damaged_prediction_is_made_again(folders: SimpleNamespace, tmp_path: Path,
                                            capsys: pytest.CaptureFixture) -> None:
    """A flipped bit in a cached prediction is scored; or one bad line costs the whole file."""
    benchmarking.main(arguments(folders, tmp_path / "results", "--batch_size", 2))
    file = prediction_files(tmp_path / "results")[0]
    whole, lines = file.read_bytes(), file.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"tokens": ', b'"tokens": 1')
    file.write_bytes(b"".join(lines))
    capsys.readouterr()
    benchmarking.main(arguments(folders, tmp_path / "results", "--batch_size", 2))
    said = capsys.readouterr().err
    assert f"{file}, line 4: damaged" in said
    assert f": 2 of {len(lines) - 1} examples found in {file}" in said
    assert file.read_bytes() == whole
