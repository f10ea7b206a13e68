"""pipeline/preparation/workers.py: what the worker processes do to any text, and how they end."""
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preparation_runs import FRACTIONS, TEXTS, Prepared, write_raw

from pipeline.data.clean_file import SPLITS, Origin
from pipeline.model.tokenizers import tokenizer_json
from pipeline.preparation.workers import BATCH_BYTES, clean_files, start_worker

ROOT = Path(__file__).resolve().parents[1]


@given(texts=st.lists(TEXTS, max_size=4))
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_any_text_goes_through_the_workers(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory,
                                           texts: list[str]) -> None:
    """A file of arbitrary Unicode breaks a worker process, or its examples are not pieces of it."""
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    options = {"keep_copyright": True, "keep_generated": True, "keep_short": True, "keep_repetitive": True,
               "chunk_tokens": 10, "stride_tokens": 3, "no_methods": False}
    start_worker(tokenizer_json(str(tokenizer_folder)), options)
    lines = [json.dumps({"file_text": text, "extra": 1}).encode() for text in texts]
    files = clean_files(path, 1, lines, [Origin()] * len(lines))
    assert [file.source_line for file in files] == list(range(1, len(texts) + 1))
    for file, text in zip(files, texts, strict=True):
        assert file.reason or file.text == text
        for windows in (file.train_windows, file.eval_windows) if not file.reason else ():
            assert all(0 <= start < cut < end <= len(text) for start, cut, end in windows[:, :3].tolist())


def test_special_tokens_in_the_source_are_text(prepare: Callable[..., Prepared], texts: list[str],
                                               kotlin_file: Callable[[int], str]) -> None:
    """`<|endoftext|>` in a source file disappears."""
    marked = kotlin_file(95).replace("return", "<|endoftext|>")
    data = prepare([*texts, marked])
    split = next(split for split in SPLITS if 41 in data.lines[split])
    rows = [row for row in data.rows[split] if row[2] == 41]
    assert all(prompt + completion in marked for prompt, completion, _ in rows)
    assert any("<|endoftext|>" in prompt + completion for prompt, completion, _ in rows)


def test_secrets_are_counted_and_left_out_if_asked(prepare: Callable[..., Prepared], texts: list[str],
                                                   capsys: pytest.CaptureFixture) -> None:
    """A token in the code is learned and nobody is told where it stands; or it stays in spite of
    --drop_secrets."""
    token = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7aB3dE6gH9"
    marked = texts[3] + f'\nval token = "{token}"\nval other = "{token}"\n'
    data = prepare([*texts[:3], marked, *texts[4:]])
    said = capsys.readouterr().out
    assert "secrets in line 4 (GitHub token 2): --drop_secrets leaves such files out" in said
    assert token not in said
    assert (data.counts["files with secrets"], data.counts["secrets, GitHub token"]) == (1, 2)
    assert any(4 in lines for lines in data.lines.values())
    data = prepare([*texts[:3], marked, *texts[4:]], "--drop_secrets", output="dropped")
    assert (data.counts["dropped, holds secrets"], data.counts["files with secrets"]) == (1, 1)
    assert not any(4 in lines for lines in data.lines.values())


def test_a_broken_line_is_named_by_worker_processes_too(tmp_path: Path, tokenizer_folder: Path,
                                                        run_script: Callable,
                                                        error_line: Callable[[str], str]) -> None:
    """An error in a worker process shows its traceback, or the stage hangs."""
    (tmp_path / "raw.jsonl").write_text(json.dumps({"file_text": "package a\n\nfun main() {}\n"}) + "\n{\n")
    result = run_script("preprocess_data.py", "--input_file", "raw.jsonl", "--output_dir", "data",
                        "--num_proc", 1, "--model_name_or_path", tokenizer_folder)
    assert result.returncode == 1
    assert "raw.jsonl, line 2: not valid JSON" in error_line(result.stderr)
    assert not (tmp_path / "data").exists()


def test_the_data_does_not_depend_on_the_number_of_processes(tmp_path: Path, tokenizer_folder: Path,
                                                             kotlin_file: Callable[[int], str],
                                                             run_script: Callable) -> None:
    """Results differ between machines."""
    write_raw(tmp_path / "raw.jsonl", [kotlin_file(number, 60) for number in range(160)])
    assert (tmp_path / "raw.jsonl").stat().st_size > 1.2 * BATCH_BYTES  # two batches
    found = []
    for number in (1, 2):
        result = run_script("preprocess_data.py", "--input_file", "raw.jsonl",
                            "--output_dir", f"data{number}", "--num_proc", number,
                            "--model_name_or_path", tokenizer_folder, *FRACTIONS)
        assert result.returncode == 0, result.stderr
        assert len(result.stderr.splitlines()) == 1  # the settings; no bar where nobody looks
        found.append(Prepared(tmp_path / f"data{number}"))
    assert found[0].rows == found[1].rows
    assert found[0].manifest["data_hash"] == found[1].manifest["data_hash"]


@pytest.fixture
def running(tmp_path: Path, tokenizer_folder: Path,
            kotlin_file: Callable[[int], str]) -> Iterator[subprocess.Popen]:
    """A run that has begun to clean a large file."""
    line = json.dumps({"file_text": kotlin_file(1, 40)}) + "\n"
    (tmp_path / "raw.jsonl").write_text(line * 20_000)
    command = [sys.executable, ROOT / "preprocess_data.py", "--input_file", "raw.jsonl",
               "--output_dir", "data", "--model_name_or_path", tokenizer_folder, "--num_proc", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".data.pipeline-tmp-*/scratch/spool")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(process.pid)
    yield process
    process.kill()
    process.wait()
    process.stderr.close()
    for pid in workers:  # none is left unless a test failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while alive := [pid for pid in processes if Path(f"/proc/{pid}/stat").exists()
                    and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_leaves_nothing(number: int, code: int, running: subprocess.Popen,
                                               tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM leaves gigabytes of temporary files or processes that go on."""
    workers = children(running.pid)
    assert workers
    running.send_signal(number)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == code, stderr
    assert len(stderr.splitlines()) == 2, stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [".data.lock", "raw.jsonl"]
    wait_until_gone(workers)


def test_a_kill_leaves_no_processes(running: subprocess.Popen) -> None:
    """After a kill -9, for instance for want of memory, the worker processes hold theirs for ever."""
    workers = children(running.pid)
    assert workers
    running.kill()
    wait_until_gone(workers)
