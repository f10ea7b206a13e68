"""Pictures: the scores of both models, and how the examples changed."""
import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.scoring.scores import LOSS, LOSS_BYTE, LOWER_IS_BETTER, NEXT_LINE, NEXT_LINE_SIMILARITY

CHARTED = (NEXT_LINE, NEXT_LINE_SIMILARITY, "edit similarity", "BLEU", LOSS)
TITLE_WIDTH, HISTOGRAM_TITLE_WIDTH = 34, 52  # characters that have room above a chart
HISTOGRAMS_A_ROW = 3


def draw_chart(metrics: dict[str, Any], file: Any) -> None:
    """Draw the scores of CHARTED of both models with their 95 % intervals as a PNG, a row a set."""
    sets = metrics["sets"]
    figure = Figure(figsize=(3 * len(CHARTED), 3.2 * len(sets)), layout="constrained")
    axes = figure.subplots(len(sets), len(CHARTED), squeeze=False)
    for row, (set_name, entry) in zip(axes, sets.items(), strict=True):
        for axis, score in zip(row, CHARTED, strict=True):
            if score == LOSS and LOSS not in entry["scores"]:
                score = LOSS_BYTE
            cell = entry["scores"][score]
            for place, (key, color) in enumerate((("base", "#9aa5b1"), ("fine_tuned", "#7f52ff"))):
                low, high = cell[f"{key}_interval"]
                error = [[max(0, cell[key] - low)], [max(0, high - cell[key])]]
                axis.bar(place, cell[key], color=color, yerr=error, capsize=5, width=0.65)
            axis.set_xticks([0, 1], ["base", "fine-tuned"])
            better = " (less is better)" if score in LOWER_IS_BETTER else ""
            axis.set_title(f"{textwrap.fill(set_name, TITLE_WIDTH)}\n{score}{better}", fontsize=9)
            axis.set_ylim(0, 1.08 * max(cell["base_interval"][1], cell["fine_tuned_interval"][1]) or 1)
            axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel("with 95 % interval", fontsize=9)
    figure.savefig(file, dpi=120)


def draw_changes(changes: dict[str, np.ndarray], file: Any) -> None:
    """Draw how the edit similarity of the examples of each set changed, as a PNG of histograms."""
    columns = min(HISTOGRAMS_A_ROW, len(changes))
    rows = math.ceil(len(changes) / columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")
    for place, (set_name, change) in enumerate(changes.items(), start=1):
        axis = figure.add_subplot(rows, columns, place)
        axis.hist(change, bins=np.arange(-105, 106, 10), color="#7f52ff")
        axis.axvline(change.mean(), color="black", linewidth=1, label=f"mean {change.mean():+.2f}")
        axis.set_title(textwrap.fill(f"{set_name}, n={len(change)}", HISTOGRAM_TITLE_WIDTH), fontsize=10)
        axis.set_xlabel("edit similarity of an example, fine-tuned minus base")
        axis.set_ylabel("examples")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
