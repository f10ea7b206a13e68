"""pipeline/evaluation/tasks.py: what is drawn of a set, and the budget of its predictions."""
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from hub_server import Hub

from pipeline.evaluation.codexglue import codexglue_task
from pipeline.evaluation.tasks import kotlin_task

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.usefixtures("short_methods")
def test_sample_and_budget_follow_the_flags(folders: SimpleNamespace) -> None:
    """--sample takes the first examples, or --max_new_tokens is ignored."""
    ids = [[e.id for e in codexglue_task(folders.codexglue, 3, seed).examples] for seed in range(6)]
    assert all(len(set(drawn)) == 3 for drawn in ids)
    assert len({tuple(drawn) for drawn in ids}) > 2
    assert ids[1] == [e.id for e in codexglue_task(folders.codexglue, 3, 1).examples]
    assert [e.id for e in codexglue_task(folders.codexglue, 0, 1).examples] == [f"row{i}" for i in range(6)]
    assert kotlin_task(str(folders.data), 0, 0, 7).max_new_tokens == 7
    assert kotlin_task(str(folders.data), 0, 0, 0).max_new_tokens == 12
    assert [e.group for e in kotlin_task(str(folders.data), 0, 0, 0).examples] == [1, 1, 2, 2, 3, 3]
    # literals that are common are so by the whole file, whatever the sample
    found = {codexglue_task(folders.codexglue, 1, seed).normalize("'a0' 'a1' 'a2'") for seed in range(6)}
    assert found == {"'a0' 'a1' ''"}


@pytest.mark.parametrize(("manifest", "budget"), [
    ({"arguments": {"chunk_tokens": 37}, "outputs": {}}, 37), (None, 100)])
def test_budget_of_a_hub_data_set(manifest: dict[str, Any] | None, budget: int, folders: SimpleNamespace,
                                  tmp_path: Path) -> None:
    """A hub data set of long chunks gets the budget of short ones, and nobody is told."""
    name = f"tester/data{budget}"
    datasets.load_from_disk(str(folders.data))["test"].to_parquet(tmp_path / "test.parquet")
    files = {"data/test.parquet": (tmp_path / "test.parquet").read_bytes(),
             "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n"
                          b"    path: data/test.parquet\n---\n"}
    if manifest:
        files["manifest.json"] = json.dumps(manifest).encode()
    code = ("import sys\nfrom pipeline.evaluation.tasks import kotlin_task\n"
            "task = kotlin_task(sys.argv[1], 0, 0, 0)\n"
            "print(task.max_new_tokens, task.dataset, task.settings['data_hash'])")
    with Hub() as hub:
        hub.add(name, files, kind="dataset")
        done = subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True,
                              env=hub.environment(tmp_path / "hf"), timeout=110)
    assert done.returncode == 0, done.stderr
    local = kotlin_task(str(folders.data), 0, 0, 0)
    # the same rows: predictions are found again
    assert done.stdout.split() == [str(budget), name, local.settings["data_hash"]]
    assert ("no manifest gives the length of its chunks" in done.stderr) == (manifest is None)
