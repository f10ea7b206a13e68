"""pipeline/run/lineage.py and `python -m pipeline lineage`: where an output comes from."""
import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import combined_hash, hash_files, sha256_file
from pipeline.run.lineage import lineage
from pipeline.run.manifests import manifest_path, read_manifest, sealed_manifest, write_manifest
from pipeline.run.outputs import write_json


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the outputs of all five stages as they lie on the disk, each with a file or two."""
    monkeypatch.chdir(tmp_path)

    def write(script: str, place: str, files: tuple[str, ...], arguments: dict[str, str],
              **details: object) -> dict | None:
        monkeypatch.setattr(sys, "argv", [f"{script}.py"])
        folder = Path(place) if files else Path(place).parent
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            (folder / name).write_text(f"{place} {name}")
        if not files:
            Path(place).write_text(place)
        write_manifest(manifest_path(Path(place)), argparse.Namespace(**arguments), hash_files(Path(place)),
                       0.0, **details)
        return read_manifest(Path(place))

    source = {"repository": "https://example.org/code.git", "commit": "c0ffee", "license_file": None}
    write("parse_data", "data/raw.jsonl", (), {"repo_url": "x"}, sources=[source])
    data = write("preprocess_data", "data/set", ("train.arrow",),
                 {"input_file": "data/raw.jsonl", "model_name_or_path": "m"},
                 inputs={"raw.jsonl": sha256_file(Path("data/raw.jsonl"))}, sources=[source])
    adapter = write("train", "models/adapter", ("adapter_model.safetensors",),
                    {"dataset": "data/set", "model_name_or_path": "owner/base"}, dataset_manifest=data)
    merged = write("merge_lora", "models/merged", ("model.safetensors",), {"hf_repository": "models/adapter"},
                   base_model="owner/base",
                   inputs={"adapter_model.safetensors": adapter["outputs"]["adapter_model.safetensors"]},
                   adapter_manifest=adapter)
    write("benchmarking", "results", ("table.md",),
          {"hf_repository": "models/merged", "base_model": "owner/base", "dataset": "data/set"},
          fine_tuned_manifest=merged, dataset_manifest=data)
    return tmp_path


STEPS = [("results", "benchmarking.py"), ("models/merged", "merge_lora.py"), ("models/adapter", "train.py"),
         ("data/set", "preprocess_data.py"), ("data/raw.jsonl", "parse_data.py")]


@pytest.mark.parametrize(("path", "first"), [("results", 0), ("results/table.md", 0), ("models/merged", 1),
                                             ("models/adapter", 2), ("data/set", 3), ("data/raw.jsonl", 4)])
def test_lineage_goes_back_to_the_source_commit(path: str, first: int, chain: Path) -> None:
    """Nobody can say which code a model or a table goes back to, or a stage is listed twice."""
    *stages, source = lineage(Path(path))
    assert [tuple(line.split("  ")[:2]) for line, _ in stages] == STEPS[first:]
    assert all("files match" in line and not change for line, change in stages)
    assert source == ("https://example.org/code.git  commit c0ffee", False)


def test_a_complete_line_of_lineage(chain: Path) -> None:
    """A line lacks the date, the hash or the origin."""
    (line, _), *_ = lineage(Path("models/merged"))
    manifest = read_manifest(Path("models/merged"))
    assert line.split("  ") == ["models/merged", "merge_lora.py", manifest["created"][:10],
                                f"sha256 {combined_hash(manifest['outputs'])[:12]}…", "files match",
                                "from models/adapter, base model owner/base"]


@pytest.mark.parametrize(("damage", "place", "message"), [
    (lambda: Path("models/adapter/adapter_model.safetensors").write_text("x"), "models/adapter",
     "CHANGED: adapter_model.safetensors"),
    (lambda: Path("data/set/train.arrow").unlink(), "data/set", "MISSING: train.arrow"),
    (lambda: Path("data/raw.jsonl").write_text("x"), "data/raw.jsonl", "CHANGED: raw.jsonl"),
    (lambda: write_manifest(Path("models/adapter/manifest.json"), argparse.Namespace(),
                            {"adapter_model.safetensors": "0"}, 0.0),
     "models/adapter", "WRITTEN AGAIN"),
    (lambda: write_manifest(Path("data/raw.manifest.json"), argparse.Namespace(), {"raw.jsonl": "0"}, 0.0),
     "data/raw.jsonl", "WRITTEN AGAIN"),
])
def test_lineage_names_what_has_changed(damage: Callable[[], object], place: str, message: str, chain: Path,
                                        capsys: pytest.CaptureFixture) -> None:
    """A model is traced to a file that is not the one that it was made from."""
    damage()
    lines = list(lineage(Path("results")))
    (changed,) = (line for line, change in lines if change)
    assert changed.startswith(place)
    assert message in changed
    assert "c0ffee" in lines[-1][0]  # the code base is known all the same
    with pytest.raises(SystemExit) as stop:
        main(["lineage", "results"])
    assert stop.value.code == 1
    assert "1 of its stages no longer match" in capsys.readouterr().err


def test_a_data_set_that_was_written_again_with_the_same_rows(chain: Path) -> None:
    """The same data set once more counts as another one, because a file beside its rows differs."""
    adapter, data = read_manifest(Path("models/adapter")), read_manifest(Path("data/set"))
    write_json(Path("models/adapter/manifest.json"),
               sealed_manifest(adapter | {"dataset_manifest": data | {"data_hash": "rows"}}))
    Path("data/set/state.json").write_text("other")
    outputs = hash_files(Path("data/set"))
    write_json(Path("data/set/manifest.json"),
               sealed_manifest(data | {"data_hash": "rows", "outputs": outputs}))
    assert not any(change for _, change in lineage(Path("models/adapter")))


@pytest.mark.parametrize("place", ["models/adapter", "data/set", "data/raw.jsonl"])
def test_lineage_where_an_input_is_no_longer_there(place: str, chain: Path) -> None:
    """A link that cannot be followed passes for checked, or ends the story."""
    path = Path(place)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = list(lineage(Path("results")))
    (line,) = (line for line, _ in lines if line.startswith(place))
    assert "is not here" in line
    assert not any(change for _, change in lines)
    assert "c0ffee" in lines[-1][0]


@pytest.mark.parametrize("manifest", [
    {"outputs": {}, "arguments": 3, "stage": "train"},
    {"outputs": {}, "stage": "train", "arguments": {"dataset": "data/set"}, "dataset_manifest": [1],
     "sources": [2]},
    {"outputs": {}, "stage": "merge_lora", "arguments": {"hf_repository": "a"},
     "adapter_manifest": {"outputs": {"\x1b[2J": 1}, "stage": "\x1b[2J", "created": 4}},
    {"outputs": {}, "stage": "preprocess_data", "sources": [{"repository": "https://u:secret@h/\x1b[2J"}]},
])
def test_lineage_of_a_manifest_from_elsewhere(manifest: dict, tmp_path: Path) -> None:
    """A manifest of somebody else ends in a traceback, writes to the terminal, or shows a password."""
    write_json(tmp_path / "manifest.json", manifest)
    lines = "".join(line for line, _ in lineage(tmp_path))
    assert "\x1b" not in lines
    assert "secret" not in lines


def test_lineage_of_something_else(chain: Path) -> None:
    """A file that no stage wrote is given the origin of its neighbours."""
    Path("results/notes.md").write_text("x")
    for path in ("results/notes.md", "models", "nothing"):
        with pytest.raises(PipelineError, match="no manifest says where it comes from"):
            list(lineage(Path(path)))
