"""pipeline/merging/verification.py: a wrong merge is found."""
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from merging_runs import refusal

from pipeline.merging import lora_merge
from pipeline.merging.adapter import LoraPair

pytestmark = pytest.mark.usefixtures("one_thread")


def test_verification_finds_a_wrong_merge(adapter_folder: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture) -> None:
    """A merge that leaves the adapter out, or applies it twice, is published as verified."""
    original = lora_merge.merge_rows
    for factor in (0.0, 2.0):
        def wrong(rows: Any, lora: LoraPair, first: int, factor: float = factor) -> Any:
            return original(rows, replace(lora, scale=lora.scale * factor), first)

        monkeypatch.setattr(lora_merge, "merge_rows", wrong)
        line = refusal(capsys, adapter_folder, tmp_path / "merged", "--verify", "on")
        assert "is not base + adapter" in line
