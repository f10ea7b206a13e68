"""pipeline/evaluation/predictions.py: what a model writes where the memory does not hold a batch."""
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_runs import arguments, predictions

import benchmarking
from pipeline.evaluation import comparison

pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")


@pytest.mark.parametrize("fits", [3, 1, 0])
def test_out_of_memory_halves_the_batch(fits: int, folders: SimpleNamespace, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture) -> None:
    """A batch too large for the memory ends the run, loses examples or changes what they say; or a traceback
    tells of it."""
    benchmarking.main(arguments(folders, tmp_path / "whole", "--batch_size", 6))
    expected = [{row["id"]: row for row in rows[1:]} for rows in predictions(tmp_path / "whole").values()]
    original = comparison.load_model

    def load(*args: Any) -> Any:
        def check(module: Any, args: Any, kwargs: Any) -> None:
            if kwargs.get("use_cache") and len(kwargs["input_ids"]) > fits:
                raise torch.OutOfMemoryError("no memory")
        model = original(*args)
        model.register_forward_pre_hook(check, with_kwargs=True)
        return model

    monkeypatch.setattr(comparison, "load_model", load)
    capsys.readouterr()
    if fits:
        benchmarking.main(arguments(folders, tmp_path / "halved", "--batch_size", 6))
        found = [{row["id"]: row for row in rows[1:]} for rows in predictions(tmp_path / "halved").values()]
        assert {row["rows"] for rows in expected for row in rows.values()} == {6}
        assert {row["rows"] for rows in found for row in rows.values()} == {fits}
        assert found == [{key: row | {"rows": fits} for key, row in rows.items()} for rows in expected]
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("out of memory")]
        assert len(notes) == 4 * {3: 1, 1: 3}[fits]  # of 6 prompts 3, and then 2 and 1
    else:
        with pytest.raises(SystemExit) as stop:
            benchmarking.main(arguments(folders, tmp_path / "halved", "--batch_size", 6))
        assert stop.value.code == 1
        assert "error: out of memory with a single prompt" in capsys.readouterr().err.splitlines()[-1]
