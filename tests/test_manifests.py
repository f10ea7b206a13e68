"""pipeline/run/manifests.py: whether an output is what was written, and what made it."""
import argparse
import json
import sys
from pathlib import Path

import pytest
from output_folders import our_folder

from pipeline.run.errors import PipelineError
from pipeline.run.hashes import hash_files, sha256_file
from pipeline.run.manifests import check_manifest, manifest_path, read_manifest, write_manifest


def test_check_manifest_of_a_folder(tmp_path: Path) -> None:
    """A changed or missing file of a model or data set goes unnoticed."""
    path = our_folder(tmp_path / "out", a="1", b="2")
    assert check_manifest(path)["outputs"] == hash_files(path)
    (path / "a").write_text("2")
    with pytest.raises(PipelineError, match="a: has changed"):
        check_manifest(path)
    (path / "a").unlink()
    with pytest.raises(PipelineError, match="a: is missing"):
        check_manifest(path)


def test_check_manifest_of_a_file(tmp_path: Path) -> None:
    """A raw file that was cut short goes unnoticed."""
    path = tmp_path / "a.jsonl"
    path.write_text("1\n")
    assert check_manifest(path) is None
    write_manifest(manifest_path(path), argparse.Namespace(), hash_files(path), 0.0)
    assert manifest_path(path).name == "a.manifest.json"
    assert check_manifest(path)["outputs"] == {"a.jsonl": sha256_file(path)}
    path.write_text("")
    with pytest.raises(PipelineError, match="has changed"):
        check_manifest(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"outputs": []}'])
def test_a_damaged_manifest_is_named(content: str, tmp_path: Path) -> None:
    """A damaged manifest gives a traceback, or switches the checks off."""
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(PipelineError, match=r"manifest\.json: "):
        read_manifest(tmp_path)


def test_a_manifest_says_what_made_the_output(tmp_path: Path) -> None:
    """A result cannot be traced to the settings and versions that made it, or holds a password."""
    args = argparse.Namespace(repo_url=["https://u:p@h/x"], path=Path("a"), number=3, none=None)
    write_manifest(tmp_path / "m.json", args, {"a": "0"}, 0.0, counts={"kept": 1})
    manifest = json.loads((tmp_path / "m.json").read_bytes())
    assert manifest["arguments"] == {"repo_url": ["https://***@h/x"], "path": "a", "number": 3, "none": None}
    assert manifest["counts"] == {"kept": 1}
    assert manifest["outputs"] == {"a": "0"}
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"stage", "created", "seconds", "manifest_version"} <= set(manifest)


def test_a_manifest_that_was_changed_is_noticed(tmp_path: Path) -> None:
    """A flipped bit in a manifest changes a budget, or the published origin, and nobody notices."""
    write_manifest(tmp_path / "manifest.json", argparse.Namespace(chunk_tokens=100), {}, 0.0,
                   counts={3: float("nan")}, pair=(1, 2))
    assert read_manifest(tmp_path)["arguments"] == {"chunk_tokens": 100}
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"chunk_tokens": 100', '"chunk_tokens": 108'))
    with pytest.raises(PipelineError, match="has changed since it was written"):
        read_manifest(tmp_path)
