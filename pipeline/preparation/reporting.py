"""What the user can look at: report.md and report.png."""
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.markdown import fenced
from pipeline.preparation.statistics import Statistics


def draw_report(counts: Counter, statistics: Statistics, path: Path) -> None:
    """Draw what became of the files, the lengths of the examples and where they were cut, as a PNG."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    fates = {name: number for name, number in counts.most_common()
             if name.startswith(("files in ", "dropped, ")) and number}
    bars = axes[0].barh(list(fates)[::-1], list(fates.values())[::-1], color="#7f52ff")
    axes[0].bar_label(bars, fmt="{:,.0f}", padding=3)
    axes[0].set_xlim(1, 10 * max(fates.values()))
    axes[0].set(title="Files", xscale="log", xlabel="files (log scale)")
    for name, color in (("prompt", "#9aa5b1"), ("completion", "#7f52ff")):
        lengths = statistics.lengths[name]
        axes[1].plot(np.arange(len(lengths)), lengths / max(1, lengths.sum()), label=name, color=color)
    axes[1].set(title="Lengths", xlabel="tokens", ylabel="share of the examples (log scale)", yscale="log")
    axes[1].legend()
    kinds = dict(statistics.boundaries.most_common(12))
    axes[2].barh(list(kinds)[::-1], np.array(list(kinds.values()))[::-1] / statistics.boundaries.total(),
                 color="#7f52ff")
    axes[2].set(title="Where prompts end", xlabel="share of the examples")
    figure.savefig(path, dpi=110)


def report_text(counts: Counter, statistics: Statistics, leakage: dict[str, Any], data: Any,
                seed: int) -> str:
    """Return report.md: counts, lengths, cuts, leakage, and five random examples as the model sees them."""
    lines = ["# What became of the files", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {number:,} |" for name, number in sorted(counts.items())]
    lines += ["", "![files, lengths and cuts](report.png)", "", "# Lengths in tokens", "",
              "| | min | 25 % | median | 75 % | max |", "|---|---:|---:|---:|---:|---:|"]
    lines += [f"| {name} | " + " | ".join(str(n) for n in statistics.quantiles(name).values()) + " |"
              for name in statistics.lengths]
    lines += ["", "# Where prompts end", "", "| place | share |", "|---|---:|"]
    for kind, number in statistics.boundaries.most_common():
        place = kind
        if kind.startswith("behind "):
            place = "behind `" + kind.removeprefix("behind ").replace("|", "\\|") + "`"
        lines.append(f"| {place.replace('```', '`` ` ``')} | {number / statistics.boundaries.total():.2%} |")
    lines += ["", "# Leakage from train into test", "", *leakage_table(leakage), "",
              "# Five random examples of train", ""]
    for i in random.Random(seed).sample(range(len(data["train"])), min(5, len(data["train"]))):
        row = data["train"][i]
        lines += [f"Example {i}, cut from line {row['source_line']} of the raw file. Prompt:", "",
                  fenced(row["prompt"]), "Completion:", "", fenced(row["completion"])]
    return "\n".join(lines) + "\n"


def leakage_table(leakage: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown table of `measure_leakage`."""
    lines = ["| split | test completions | number | verbatim in train | some 13-gram in train | "
             "mean share of 13-grams in train |", "|---|---|---:|---:|---:|---:|"]
    for way, kinds in leakage.items():
        for kind, share in kinds.items():
            lines.append(f"| {way} | {kind} | {share['completions']:,} | {share['verbatim_in_train']:.1%} | "
                         f"{share['any_13_gram_in_train']:.1%} | "
                         f"{share['mean_share_of_13_grams_in_train']:.1%} |")
    return lines
