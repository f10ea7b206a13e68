"""pipeline/preparation/reporting.py: what one can look at after a run."""
import json
from pathlib import Path

import datasets
from preparation_runs import arguments, save_corpus

import preprocess_data


def test_report_and_pictures_are_written(tmp_path: Path) -> None:
    """There is nothing to look at, or it is not what is in the data."""
    corpus = save_corpus(tmp_path / "corpus")
    preprocess_data.main(arguments(corpus, tmp_path / "data"))
    report = (tmp_path / "data" / "report.md").read_text()
    data = datasets.load_from_disk(str(tmp_path / "data"))
    assert f"| examples in train | {len(data['train']):,} |" in report
    assert "| this data set | all |" in report
    assert report.count("Completion:") == 5
    assert (tmp_path / "data" / "report.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["leakage"]["this data set"]["all"]["completions"] == len(data["test"])
    assert not list(tmp_path.glob(".data.pipeline*"))
