"""pipeline/evaluation/charts.py: what the pictures show."""
import io
import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.evaluation.charts import CHARTED, draw_changes, draw_chart
from pipeline.scoring.scores import LOSS, LOSS_BYTE


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """A list of the figures that were saved."""
    figures, save = [], Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize(("value", "interval"), [
    (40.0, [35.0, 45.0]), (0.0, [0.0, 0.0]), (40.0, [40.1, 45.0])])
def test_every_score_of_every_set_is_drawn(value: float, interval: list[float], drawn: list[Figure]) -> None:
    """A set or a score is missing; or zeros, or an interval beside its rounded value, end the benchmark."""
    cell = {"base": value, "base_interval": interval, "fine_tuned": value, "fine_tuned_interval": interval}
    entry, names = {"scores": dict.fromkeys(CHARTED, cell)}, ("CodeXGLUE (Python)", "Kotlin")
    draw_chart({"sets": dict.fromkeys(names, entry)}, file := io.BytesIO())
    assert file.getvalue().startswith(b"\x89PNG")
    [figure] = drawn
    titles = [axis.get_title().splitlines() for axis in figure.axes]
    assert [title[0] for title in titles] == [name for name in names for _ in CHARTED]
    assert [title[1].removesuffix(" (less is better)") for title in titles] == [*CHARTED, *CHARTED]
    assert all([bar.get_height() for bar in axis.patches] == [value, value] for axis in figure.axes)


def test_the_loss_a_byte_stands_in(drawn: list[Figure]) -> None:
    """Two models with two tokenizers get no chart."""
    cell = {"base": 2.0, "base_interval": [1.0, 3.0], "fine_tuned": 1.0, "fine_tuned_interval": [0.5, 2.0]}
    scores = dict.fromkeys(({*CHARTED} - {LOSS}) | {LOSS_BYTE}, cell)
    draw_chart({"sets": {"Kotlin": {"scores": scores}}}, io.BytesIO())
    assert drawn[0].axes[-1].get_title() == f"Kotlin\n{LOSS_BYTE} (less is better)"


def test_long_names_stand_beside_one_another(drawn: list[Figure]) -> None:
    """The titles of a set with pieces of the repository lie one over the other, and nobody can read them."""
    cell = {"base": 2.0, "base_interval": [1.0, 3.0], "fine_tuned": 1.0, "fine_tuned_interval": [0.5, 2.0]}
    name = "Kotlin, infilling, 512 tokens of repository context, without answers in the snippets"
    draw_chart({"sets": {name: {"scores": dict.fromkeys(CHARTED, cell)}}}, io.BytesIO())
    draw_changes(dict.fromkeys((name, f"{name} 2", f"{name} 3", f"{name} 4"), np.zeros(3)), io.BytesIO())
    for figure in drawn:
        boxes = [axis.title.get_window_extent() for axis in figure.axes]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert len({round(axis.get_position().y0, 3) for axis in drawn[1].axes}) == 2  # rows


def test_every_example_is_in_the_histogram(drawn: list[Figure]) -> None:
    """The largest gains and losses fall out of the picture."""
    changes = {"Kotlin": np.array([-100.0, -3, 0, 0, 100]), "Python": np.array([0.5])}
    draw_changes(changes, file := io.BytesIO())
    assert file.getvalue().startswith(b"\x89PNG")
    [figure] = drawn
    assert [sum(bar.get_height() for bar in axis.patches) for axis in figure.axes] == [5, 1]
