"""Draw the README's picture from the table of a run of benchmarking.py.

Reads   results/table.md   its rows `| set | score | base | fine-tuned | …`, each score as `value [low, high]`
Writes  docs/chart.png     three scores of each set, base beside fine-tuned, with their 95 % intervals

Run:    python docs/make_pictures.py results/table.md
"""
import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

CHART = Path(__file__).resolve().parent / "chart.png"
SCORES = {"next line similarity": "How near the next line comes (0 to 100)",
          "edit similarity": "How near 100 tokens come (0 to 100)",
          "loss, nats a token": "Loss, in nats a token (less is better)"}
MODELS = (("base", "#9aa5b1"), ("fine-tuned", "#7f52ff"))
CELL = re.compile(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]")
Score = tuple[float, float, float]  # value, and the ends of its interval


def read_table(text: str) -> dict[str, dict[str, tuple[Score, Score]]]:
    """Return {score of SCORES: {set: (base, fine-tuned)}} of the first such rows of a Markdown text."""
    found: dict[str, dict[str, tuple[Score, Score]]] = {score: {} for score in SCORES}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 4 or cells[1] not in SCORES:
            continue
        both = [CELL.fullmatch(cell) for cell in cells[2:4]]
        if all(both):
            found[cells[1]].setdefault(cells[0], tuple(tuple(map(float, cell.groups())) for cell in both))
    missing = [score for score, sets in found.items() if not sets]
    if missing:
        raise SystemExit(f"make_pictures.py: error: no rows of {', '.join(missing)}; name a table.md that "
                         "benchmarking.py wrote")
    return found


def draw(table: dict[str, dict[str, tuple[Score, Score]]], file: Path) -> None:
    """Draw the scores as groups of two bars, a group a set."""
    tall = max(map(len, table.values())) > 3
    figure = Figure(figsize=(10, 4.2 if tall else 3.2), layout="constrained")
    for axis, (score, sets) in zip(figure.subplots(1, len(SCORES)), table.items(), strict=True):
        for which, (label, color) in enumerate(MODELS):
            values, lows, highs = zip(*(pair[which] for pair in sets.values()), strict=True)
            errors = [[max(0, value - low) for value, low in zip(values, lows, strict=True)],
                      [max(0, high - value) for value, high in zip(values, highs, strict=True)]]
            places = [group + (which - 0.5) * 0.38 for group in range(len(sets))]
            axis.bar(places, values, 0.36, yerr=errors, capsize=3, color=color, label=label)
        tilted = len(sets) > 3  # more do not fit side by side
        names = [name.replace(", n=", " n=" if tilted else ",\nn=").replace(" tokens of context", " tokens")
                 for name in sets]
        tilt = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
        axis.set_xticks(range(len(sets)), names, fontsize=7, **tilt)
        axis.set_title(SCORES[score], fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(MODELS), frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        sys.exit(__doc__)
    draw(read_table(Path(arguments[0]).read_text(encoding="utf-8")), CHART)
    print(f"wrote {CHART.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
