"""pipeline/preparation/data_set_report.py: what one can look at after a run."""
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
from matplotlib.figure import Figure
from preparation_runs import Prepared, arguments, save_corpus

import preprocess_data
from pipeline.preparation.data_set_report import _draw_bars, funnel


def test_report_and_pictures_are_written(tmp_path: Path) -> None:
    """There is nothing to look at, or it is not what is in the data."""
    corpus = save_corpus(tmp_path / "corpus")
    preprocess_data.main(arguments(corpus, tmp_path / "data"))
    report = (tmp_path / "data" / "report.md").read_text()
    data = datasets.load_from_disk(str(tmp_path / "data"))
    files = datasets.load_from_disk(str(tmp_path / "data" / "files"))
    for split in data:
        number = len(set(data[split]["source_line"]))
        # a token of this tokenizer is a byte
        tokens = sum(len(text.encode()) for text in files[split]["text"])
        assert f"| {split} | {number:,} | {tokens:,} | {len(data[split]):,} |" in report
    assert "| read | | 60 |" in report
    assert report.count("of the raw file |") == 10  # the largest files of train, by their lines
    assert "| this data set | all |" in report
    assert report.count("Completion:") == 5
    assert (tmp_path / "data" / "report.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["leakage"]["this data set"]["all"]["completions"] == len(data["test"])
    assert not list(tmp_path.glob(".data.pipeline*"))


def test_labels_of_a_small_corpus_lie_side_by_side() -> None:
    """With some ten files, the numbers below the bars lie one over the other."""
    axes = Figure(figsize=(5, 4)).subplots()
    _draw_bars(axes, [("in train", 29, "red"), ("in validation", 3, "red"), ("in test", 6, "red")], "{}")
    axes.figure.canvas.draw()
    labels = [*axes.get_xticklabels(which="major"), *axes.get_xticklabels(which="minor")]
    low, high = axes.get_xlim()
    boxes = [label.get_window_extent() for label in labels
             if label.get_text() and low <= label.get_position()[0] <= high]
    assert boxes
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_the_funnel_is_in_the_order_of_the_rules() -> None:
    """Nobody can tell which rule took the files, or they do not add up."""
    counts = Counter({"files read": 100, "dropped, near-duplicate": 5, "dropped, empty after cleaning": 2,
                      "dropped, of a new rule": 1, "dropped, repeats itself": 0, "files in train": 92})
    assert funnel(counts) == [("empty after cleaning", 2, 98), ("near-duplicate", 5, 93),
                              ("of a new rule", 1, 92)]


def test_the_report_names_files(prepare: Callable[..., Prepared], texts: list[str], tmp_path: Path) -> None:
    """The file that is half of train, or that an example is from, has to be looked for by a number."""
    lines = [{"repository": "https://h/r.git", "path": f"src/F|{n}.kt", "license_file": "LICENSE",
              "license": "MIT"} for n in range(40)]
    (tmp_path / "raw.provenance.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"repository": "r", "commit": None, "license_file": None, "files": 45}
    manifest = {"outputs": {}, "sources": [source]}
    (tmp_path / "raw.manifest.json").write_text(json.dumps(manifest))
    report = (prepare(texts).folder / "report.md").read_text()
    assert "| found in the sources | | 45 |\n| text, as read | 5 | 40 |" in report
    row = r"^\| \d+ \| \d+\.\d\d% \| src/F\\\|\d+\.kt \| https://h/r.git \| MIT \|$"
    assert len(re.findall(row, report, re.MULTILINE)) == 10
    paths = re.findall(r"^`(src/F\|\d+\.kt)` \(line \d+ of the raw file\), example \d+", report, re.MULTILINE)
    assert len(set(paths)) == 5
    assert paths == sorted(paths)
