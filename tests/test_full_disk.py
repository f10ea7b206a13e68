"""Stages 1 and 2 where a file cannot be written in full: the old output stays, and one line says why."""
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from output_folders import names, our_folder

from pipeline.run.hashes import hash_files


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.usefixtures("plain_git")
def test_a_full_disk_in_stage_1(tmp_path: Path, run_script: Callable,
                                error_line: Callable[[str], str]) -> None:
    """A full disk destroys the old raw file, leaves half a new one, or shows a traceback."""
    for i in range(5):
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / f"{i}.kt").write_text(f"val a{i} = 1\n" * 3000)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "raw.jsonl").write_text("previous\n")
    result = run_script("parse_data.py", "--repo_url", "code", "--clone_path", "clone", "--output_file",
                        "out/raw.jsonl", preexec_fn=limit_file_size)
    assert result.returncode == 1
    assert "file size limit" in error_line(result.stderr)
    assert names(tmp_path / "out") == [".raw.jsonl.lock", "raw.jsonl"]
    assert (tmp_path / "out" / "raw.jsonl").read_text() == "previous\n"
    assert not (tmp_path / "clone").exists()


@pytest.mark.parametrize("functions", [400, 7])
def test_a_full_disk_in_stage_2(functions: int, tmp_path: Path, run_script: Callable,
                                error_line: Callable[[str], str], tokenizer_folder: Path,
                                kotlin_file: Callable[..., str]) -> None:
    """A full disk destroys the old data set, leaves half a new one, or shows a traceback: while cleaning, and
    while writing."""
    with open(tmp_path / "raw.jsonl", "w") as raw:
        for number in range(30):
            raw.write(json.dumps({"file_text": kotlin_file(number, functions)}) + "\n")
    before = hash_files(our_folder(tmp_path / "data", **{"dataset_dict.json": "old"}))
    result = run_script("preprocess_data.py", "--input_file", "raw.jsonl", "--output_dir", "data",
                        "--num_proc", 1, "--model_name_or_path", tokenizer_folder, "--validation_fraction",
                        0.2, "--test_fraction", 0.2, "--chunk_tokens", 60, "--stride_tokens", 2,
                        preexec_fn=limit_file_size)
    assert result.returncode == 1, result.stderr
    assert "file size limit" in error_line(result.stderr)
    assert hash_files(tmp_path / "data") == before
    assert names(tmp_path) == [".data.lock", "data", "raw.jsonl"]
