"""pipeline/training/planning.py: how much passes through the model at once."""
import json
from pathlib import Path

import pytest
from training_runs import command, curve_of

import train
from pipeline.training import planning

pytestmark = pytest.mark.usefixtures("one_thread")


def test_free_memory_decides_the_batch(model_folder: Path, dataset_folder: Path, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that the memory cannot hold is begun; or the batch changes what is learned."""
    monkeypatch.setattr(planning, "available_memory", lambda: 10**6)  # too little for two examples
    train.main(command(model_folder, dataset_folder, tmp_path / "small"))
    monkeypatch.undo()
    train.main(command(model_folder, dataset_folder, tmp_path / "large"))
    manifests = {name: json.loads((tmp_path / name / "manifest.json").read_text())
                 for name in ("small", "large")}
    assert manifests["small"]["tokens_per_batch"] < 150 < manifests["large"]["tokens_per_batch"]
    for a, b in zip(curve_of(tmp_path / "small"), curve_of(tmp_path / "large"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
