"""Stages 1 and 2 on code that nobody wrote for this project, in other languages, as it is installed here."""
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from parsing_runs import Result
from preparation_runs import Prepared

from pipeline.preparation.cleaning import is_generated, notice_spans
from pipeline.preparation.comments import style_of

PLACES = {name: Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
CORPORA = [  # (folder of files, their extension)
    pytest.param(PLACES["stdlib"] / "asyncio", ".py", id="Python"),
    pytest.param(PLACES["purelib"] / "torch" / "include" / "c10" / "util", ".h", id="C++"),
]


@pytest.mark.parametrize(("folder", "extension"), CORPORA)
def test_another_language_goes_through(folder: Path, extension: str, parse: Callable[..., Result],
                                       prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    """What was made for Kotlin loses, or changes, the files of another language."""
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not installed here")
    raw = parse(folder, options=("--extensions", extension), output="raw.jsonl")
    data = prepare(None, "--min_test_examples", 200, "--chunk_tokens", 100, "--stride_tokens", 100)
    assert data.counts["files read"] == len(raw.texts) > 25
    rows = [row for split in data.files.values() for row in split]
    lines = [row["source_line"] for row in rows]
    dropped = [line["source_line"] for line in data.dropped if not line["examples_left_out"]]
    assert sorted(lines + dropped) == [*range(1, len(raw.texts) + 1)]
    for row in rows:
        style, source = style_of(row["path"]), raw.texts[row["source_line"] - 1]
        assert not notice_spans(row["text"], style)
        assert not is_generated(row["text"], style)
        spans = notice_spans(source, style)
        left = "".join(source[begin:end] for begin, end in zip([0, *(end for _, end in spans)],
                                                               [*(begin for begin, _ in spans), len(source)],
                                                               strict=True))
        assert row["text"].split() == left.split()
    assert len(data.files["test"]) >= 2
    for split, examples in data.rows.items():
        texts = {row["source_line"]: row["text"] for row in data.files[split]}
        assert all(prompt + completion in texts[line] for prompt, completion, line in examples)
