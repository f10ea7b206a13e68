"""pipeline/evaluation/processes.py: torchrun's processes write what one does, and find a GPU each."""
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evaluation_runs import arguments

import benchmarking
from pipeline.evaluation.processes import ALONE, join_processes
from pipeline.run.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_several_processes_write_what_one_does(folders: SimpleNamespace, tmp_path: Path) -> None:
    """torchrun gives other predictions, scores or files than one process, or leaves examples out."""
    benchmarking.main(arguments(folders, tmp_path / "one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(ROOT / "benchmarking.py")]
    done = subprocess.run([*command, *arguments(folders, tmp_path / "two")],
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    one, two = ({file.relative_to(output).as_posix(): file.read_bytes() for file in output.rglob("*")
                 if file.is_file() and file.name != "manifest.json"}
                for output in (tmp_path / "one", tmp_path / "two"))
    assert one == two
    assert len([name for name in one if name.startswith("predictions/")]) == 8


def test_processes_agree_on_what_the_first_found(tmp_path: Path) -> None:
    """Each process draws its own examples by its own measurement, and no batch is whole."""
    script = tmp_path / "agree.py"
    script.write_text("from pipeline.evaluation.processes import join_processes\n"
                      "processes = join_processes()\n"
                      "print(processes.rank, processes.agree(lambda: f'of {processes.rank}'))\n")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                           "2", str(script)], capture_output=True, text=True, timeout=110, cwd=ROOT,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 of 0", "1 of 0"]
    assert ALONE.agree(lambda: "mine") == "mine"


def test_more_processes_than_gpus_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a GPU of its own ends with a traceback of CUDA, while the others wait for it."""
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PipelineError, match="process 3 on a machine with 2 GPUs; give --nproc_per_node 2"):
        join_processes()
