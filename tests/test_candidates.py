"""pipeline/evaluation/candidates.py: an adapter and its base, and what is said where they do not fit."""
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_runs import arguments, predictions

import benchmarking
from pipeline.evaluation.candidates import check_adapter_base, warn_of_another_base
from pipeline.model.model_source import ModelSource
from pipeline.run.errors import PipelineError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("short_methods")
def test_an_adapter_predicts_what_its_merge_does(folders: SimpleNamespace, tmp_path: Path) -> None:
    """The scores of an adapter are those of the base model, or of an adapter that is applied twice."""
    benchmarking.main(arguments(folders, tmp_path / "merged"))
    benchmarking.main(arguments(folders, tmp_path / "adapter", "--hf_repository", folders.adapter))
    merged, adapter = ({file.split(".")[0] + rows[0]["header"]["set"]: [row["prediction"] for row in rows[1:]]
                        for file, rows in predictions(tmp_path / name).items()}
                       for name in ("merged", "adapter"))
    assert len(merged) == len(adapter) == 4
    pairs = [(a, b) for task in ("Python stand-in", "Kotlin")
             for key in merged if "merged" in key and key.endswith(task)
             for other in adapter if "adapter" in other and other.endswith(task)
             for a, b in zip(merged[key], adapter[other], strict=True)]
    assert len(pairs) == 12
    assert sum(a == b for a, b in pairs) >= 11


@pytest.mark.parametrize(("named", "base", "told"), [
    ("owner/base", "owner/base", None), ("owner/other", "owner/base", "error"), (None, "owner/base", "note"),
    ("/home/me/base", "owner/base", "note"), ("owner/base", "./base", "note")])
def test_an_adapter_of_another_model_is_told(named: str | None, base: str, told: str | None, tmp_path: Path,
                                             capsys: pytest.CaptureFixture) -> None:
    """An adapter is applied to a model that it was not made for; or one that was moved cannot be scored."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    source = ModelSource("mine", "identity", str(tmp_path))
    if told == "error":
        with pytest.raises(PipelineError, match="its adapter was made for owner/other"):
            check_adapter_base(source, base)
    else:
        check_adapter_base(source, base)
    assert ("it is applied to --base_model" in capsys.readouterr().err) == (told == "note")


def test_a_damaged_adapter_is_one_line(tmp_path: Path) -> None:
    """The benchmark of an adapter whose settings are damaged ends in a traceback."""
    for text in ("null", "{", '{"base_model_name_or_path": []}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(PipelineError, match=r"adapter_config\.json"):
            check_adapter_base(ModelSource("mine", "identity", str(tmp_path)), "owner/base")


@pytest.mark.parametrize(("manifest", "warned"), [
    (None, False), ({}, False), ({"base_model_hash": "weights"}, False),
    ({"base_model_hash": "commit"}, False), ({"base_model_hash": "other"}, True),
    ({"adapter_manifest": {"base_model_hash": "other"}}, True),
    ({"adapter_manifest": {"base_model_hash": "weights"}}, False)])
def test_another_base_than_the_one_that_was_trained_is_told(manifest: dict[str, Any] | None, warned: bool,
                                                            capsys: pytest.CaptureFixture) -> None:
    """The difference to a model that was never trained on passes for an effect of the training."""
    warn_of_another_base(ModelSource("base", "identity", commit="commit", weights_hash="weights"), manifest)
    assert ("is not the model that was fine-tuned" in capsys.readouterr().err) == warned
