"""pipeline/evaluation/comparison.py: which models are loaded, and when."""
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_runs import arguments

import benchmarking
from pipeline.evaluation import comparison

pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")


def test_another_model_costs_one_model(folders: SimpleNamespace, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture) -> None:
    """The base model predicts everything again for each repository, or both models are in memory together."""
    loaded: list[tuple[str, Any]] = []
    original = comparison.load_model

    def load(source: Any, base: Any, precision: str) -> Any:
        assert all(model() is None for _, model in loaded)
        model = original(source, base, precision)
        loaded.append((source.name, weakref.ref(model)))
        return model

    monkeypatch.setattr(comparison, "load_model", load)
    benchmarking.main(arguments(folders, tmp_path / "results"))
    assert [name for name, _ in loaded] == [str(folders.base), str(folders.merged)]
    benchmarking.main(arguments(folders, tmp_path / "results", "--hf_repository", folders.adapter))
    assert [name for name, _ in loaded[2:]] == [str(folders.adapter)]
    capsys.readouterr()
    # other settings of the Kotlin set alone
    benchmarking.main(arguments(folders, tmp_path / "results", "--max_new_tokens", 3))
    told = capsys.readouterr().err
    assert told.count(" differs in max_new_tokens; ") == 2
    assert "CodeXGLUE (Python): 6 of 6 examples found" in told
