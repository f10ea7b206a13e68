"""benchmarking.py: what a run writes, and what a mistake costs."""
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from evaluation_runs import arguments, predictions, run_stage, with_files

import benchmarking
from pipeline.data.datasets import load_examples
from pipeline.run.markdown import fenced
from pipeline.scoring.scores import LOSS, PARSES, SHOWN, Scores

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")


def test_results_of_a_run(folders: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The results lack a score, an interval or the settings, or the models got different sets."""
    benchmarking.main(arguments(folders, tmp_path / "results", "--sample", 4, "--seed", 3))
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith(f"wrote {tmp_path / 'results'} in ")
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert set(metrics["sets"]) == {"Python stand-in", "Kotlin"}
    for entry in metrics["sets"].values():
        assert entry["examples"] == 4
        assert "seed:3" in entry["signature"]
        for cell in entry["scores"].values():
            assert cell["base_interval"][0] <= cell["base"] <= cell["base_interval"][1]
            assert 0 < cell["p"] <= 1
    assert "budget:12" in metrics["sets"]["Kotlin"]["signature"]  # the data set's chunk_tokens
    assert (tmp_path / "results" / "chart.png").read_bytes().startswith(b"\x89PNG")
    rows = len(SHOWN) - 1  # without files, nothing can be parsed
    assert (tmp_path / "results" / "table.md").read_text().count("\n| ") == 1 + 2 * rows
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {"metrics.json", "table.md", "report.md", "chart.png", "change.png"}
    found = predictions(tmp_path / "results")
    assert len(found) == 4
    for name in ("python", "kotlin"):
        one, two = (rows for file, rows in found.items() if f".{name}." in file)
        header = one[0]["header"]
        assert header["examples"] == two[0]["header"]["examples"]
        references = [{row["id"]: row["reference"] for row in rows[1:]} for rows in (one, two)]
        assert sorted(references[0]) == sorted(header["examples"])
        assert references[0] == references[1]
        assert len(one) == len(two) == 5
        assert [row["prediction"] for row in one[1:]] != [row["prediction"] for row in two[1:]]
        assert all(row["tokens"] <= header["max_new_tokens"] for row in one[1:] + two[1:])


def test_everything_is_reported(folders: SimpleNamespace, tmp_path: Path,
                                capsys: pytest.CaptureFixture) -> None:
    """A score, the perplexity, the baselines or the examples are computed and then shown nowhere."""
    metrics = run_stage(folders, tmp_path, "--baselines")
    printed, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert max(map(len, printed[:printed.index("base: ")].splitlines())) <= 100
    assert "most similar training completion" in printed
    assert "most similar training completion" in (tmp_path / "table.md").read_text()
    for name, entry in metrics["sets"].items():
        assert set(entry["scores"]) == set(Scores.NAMES) - {PARSES}  # there are no files to parse
        assert all(cell["base_interval"][0] <= cell["base"] <= cell["base_interval"][1]
                   for cell in entry["scores"].values())
        assert entry["perplexity"]["base"] == pytest.approx(math.exp(entry["scores"][LOSS]["base"]), rel=1e-3)
        assert entry["reference_length"] > 1
        assert sum(entry["change"][key] for key in ("better", "equal", "worse")) == 6
        assert len(entry["baselines"]) == (4 if name == "Kotlin" else 3)
        assert report.count(f"\n### {name} ") == 6
        assert all(f"| {name}, n=6 | {score} |" in report for score in entry["scores"])
        assert f"perplexity of the reference: base {entry['perplexity']['base']:.2f} [" in report
    assert "data:data|" in metrics["sets"]["Kotlin"]["signature"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("chart.png", "change.png"))
    for text in (row["prompt"] for row in load_examples(str(folders.data), ("test",))["test"]):
        assert fenced(text) in report


def test_kotlin_is_evaluated_once_for_each_context(folders: SimpleNamespace, tmp_path: Path,
                                               capsys: pytest.CaptureFixture) -> None:
    """A length of context is left out, on other examples, without a score or an example shown, or its
    predictions are taken for those of another length."""
    own = with_files(folders, tmp_path / "data")
    metrics = run_stage(own, tmp_path / "results", "--context_tokens", 0, 40, 20, "--sample", 4,
                        "--baselines")
    names = ["Python stand-in", "Kotlin", "Kotlin, 40 tokens of context", "Kotlin, 20 tokens of context"]
    printed, report = capsys.readouterr(), (tmp_path / "results" / "report.md").read_text()
    assert list(metrics["sets"]) == names
    assert "at most 12 new tokens; Kotlin, 40 tokens of context: 4 examples" in printed.err
    assert [line for line in printed.out.splitlines() if line.endswith(", n=4")] == [
        f"{name}, n=4" for name in [*names, *names]]
    for name in names:
        entry = metrics["sets"][name]
        assert set(entry["scores"]) == set(Scores.NAMES) - ({PARSES} if "Python" in name else set())
        assert entry.get("reference_parses", 100) == 100
        assert report.count(f"\n### {name} ") == 4
        assert entry["signature"].count("|prompt:40 tokens of context|") == ("40" in name)
        assert len(entry["baselines"]) == (4 if "Kotlin" in name else 3)
    ended = [metrics["sets"][name]["reference_ended"] for name in names]
    assert ended[0] == 100
    assert ended[1] == ended[2] == ended[3]
    found = predictions(tmp_path / "results")
    sets = ("python", "kotlin", "kotlin-40", "kotlin-20")
    assert sorted(file.split(".")[1] for file in found) == sorted([*sets, *sets])
    kotlin = [rows[0]["header"] for file, rows in found.items() if ".kotlin" in file]
    assert len({tuple(header["examples"]) for header in kotlin}) == 1
    assert len({tuple(row["reference"] for row in sorted(rows[1:], key=lambda row: row["id"]))
                for file, rows in found.items() if ".kotlin" in file}) == 1
    written = {tuple(row["prediction"] for row in sorted(rows[1:], key=lambda row: row["id"]))
               for file, rows in found.items() if ".kotlin" in file}
    assert len(written) == 6  # something else given each context


@pytest.mark.parametrize("contexts", [(0, 20), (20,)])
def test_without_whole_files_the_chunk_is_the_prompt(contexts: tuple[int, ...], folders: SimpleNamespace,
                                                     tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An older data set cannot be scored, or is scored on nothing; or no note says what was left out."""
    metrics = run_stage(folders, tmp_path, "--context_tokens", *contexts)
    captured = capsys.readouterr()
    assert list(metrics["sets"]) == ["Python stand-in", "Kotlin"]
    assert captured.err.count(f"note: --dataset {folders.data}: holds no whole files; evaluated given one "
                              "chunk alone, not 20 tokens of context") == 1
    assert metrics["sets"]["Kotlin"]["examples"] == 6
    # nobody knows where these files end
    assert "reference_ended" not in metrics["sets"]["Kotlin"]
    assert captured.out.count("of the references end there") == 1


@pytest.mark.parametrize(("change", "named"), [
    ("both", "side by side"), ("pickle", "pickled weights"), ("missing", "no such folder"),
    ("empty file", "holds no example"), ("no field", "no field 'docstring'"),
    ("base is adapter", "is an adapter"), ("vllm", "vllm is not installed"),
    ("no test split", "no split 'test'")])
def test_mistakes_are_one_line(change: str, named: str, folders: SimpleNamespace, tmp_path: Path,
                               capsys: pytest.CaptureFixture) -> None:
    """A mistake costs a traceback, or the time of a whole run before it is found, or a model is scored with
    its adapter applied twice."""
    model, file, more = tmp_path / "model", tmp_path / "test.jsonl", []
    if change in ("both", "pickle"):
        shutil.copytree(folders.adapter if change == "both" else folders.base, model)
        if change == "both":
            shutil.copy(folders.base / "model.safetensors", model)
        else:
            (model / "model.safetensors").rename(model / "pytorch_model.bin")
    if change == "empty file":
        file.write_text("")
    elif change == "no field":
        file.write_text('{"signature": "def f():", "body": "pass"}\n')
    if change in ("both", "pickle", "missing"):
        more = ["--hf_repository", model]
    elif change == "base is adapter":
        more = ["--base_model", folders.adapter]
    elif change == "vllm":
        if importlib.util.find_spec("vllm"):
            pytest.skip("vllm is installed here")
        more = ["--engine", "vllm"]
    elif change == "no test split":
        data = datasets.load_from_disk(str(folders.data))
        data.pop("test")
        data.save_to_disk(str(tmp_path / "data"))
        more = ["--dataset", tmp_path / "data"]
    else:
        more = ["--codexglue_file", file]
    with pytest.raises(SystemExit) as stop:
        benchmarking.main(arguments(folders, tmp_path / "results", *more))
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert captured.err.count(": error: ") == 1
    assert named in captured.err.splitlines()[-1]
    assert not list((tmp_path / "results").iterdir())


def test_missing_benchmark_without_a_network_is_one_line(folders: SimpleNamespace, tmp_path: Path) -> None:
    """Without the hub the user is left with a traceback, without a word on which file to put where."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"),
                                "NO_PROXY": "*", "no_proxy": "*"}
    command = arguments(folders, tmp_path / "results", "--codexglue_file", tmp_path / "missing.jsonl")
    # the client waits between its attempts: not here
    code = ("import sys, time; time.sleep = lambda seconds: None; "
            "import benchmarking; benchmarking.main(sys.argv[1:])")
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=110)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert ": error: " in line
    for part in ("test.jsonl", "microsoft/codexglue_method_generation", str(tmp_path / "missing.jsonl")):
        assert part in line
    assert not (tmp_path / "missing.jsonl").exists()
