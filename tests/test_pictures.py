"""docs/make_pictures.py: the README's picture shows the table of a run."""
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.evaluation.benchmark_report import make_table
from pipeline.run.markdown import table_as_markdown

DOCS = Path(__file__).resolve().parents[1] / "docs"
MOST_BYTES = 100_000


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table_of(pictures: ModuleType) -> str:
    """Return a table as benchmarking.py writes it."""
    cell = {"base": 37.531, "base_interval": [33.61, 42.53], "fine_tuned": 12.34,
            "fine_tuned_interval": [10.01, 14.99], "difference": -25.19,
            "difference_interval": [-30.12, -20.45], "p": 0.0005}
    names = ("Python stand-in", "Kotlin", "Kotlin, 512 tokens of context")
    scores = dict.fromkeys((*pictures.SCORES, "BLEU"), cell)
    sets = {name: {"examples": 9, "scores": scores} for name in names}
    return table_as_markdown(make_table({"sets": sets}))


def test_the_picture_is_of_the_table(pictures: ModuleType, tmp_path: Path) -> None:
    """The picture shows other numbers than the table, leaves a set out, or is too large to be kept."""
    table = pictures.read_table(table_of(pictures))
    assert list(table) == list(pictures.SCORES)
    for sets in table.values():
        assert list(sets) == ["Python stand-in, n=9", "Kotlin, n=9", "Kotlin, 512 tokens of context, n=9"]
        assert set(sets.values()) == {((37.53, 33.61, 42.53), (12.34, 10.01, 14.99))}
    pictures.draw(table, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "chart.png").stat().st_size < MOST_BYTES


def test_a_text_without_such_a_table_is_refused(pictures: ModuleType) -> None:
    """An empty picture takes the place of the README's."""
    with pytest.raises(SystemExit, match="no rows of next line similarity"):
        pictures.read_table("| set | score | base | fine-tuned |\n| --- | --- | --- | --- |\n")


def test_committed_pictures_are_small() -> None:
    """Every clone carries every version of a large picture."""
    files = list(DOCS.glob("*.png"))
    assert files
    assert [file.name for file in files if file.stat().st_size >= MOST_BYTES] == []
