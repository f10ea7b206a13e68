"""What the user sees: the tables, what belongs below them, and the report with its examples."""
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from pipeline.evaluation.baselines import BASELINE_EXAMPLES
from pipeline.evaluation.charts import draw_changes, draw_chart
from pipeline.run.markdown import fenced, table_as_markdown
from pipeline.run.outputs import atomic_file, write_json
from pipeline.scoring.scores import (
    ENDED,
    JUDGED,
    LENGTH,
    LOSS,
    LOSS_BYTE,
    LOWER_IS_BETTER,
    NEXT_LINE,
    NEXT_LINE_SIMILARITY,
    PARSES,
    RESAMPLES,
    SHOWN,
    SIGNIFICANT,
    Scores,
)
from pipeline.tasks.answers import Answers, ModelOnSet
from pipeline.tasks.codexglue import PYTHON_SETS
from pipeline.tasks.task import Task

BASELINE_SHOWN = (NEXT_LINE, NEXT_LINE_SIMILARITY, "edit similarity")  # of a baseline in the printed table


def shown_with_interval(value: float, interval: list[float], sign: str = "") -> str:
    """Return e.g. `37.53 [33.61, 42.53]`."""
    return f"{value:{sign}.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def shown_scores(cells: dict[str, Any], scores: tuple[str, ...] = SHOWN) -> list[str]:
    """Return those of the scores that a set has; the loss a byte stands in for a loss a token that it has
    not."""
    found = [LOSS_BYTE if score == LOSS and LOSS not in cells else score for score in scores]
    return [score for score in dict.fromkeys(found) if score in cells]


def make_table(metrics: dict[str, Any], scores: tuple[str, ...] = SHOWN) -> Any:
    """Return the pandas table of the comparison, at most 100 characters wide without the set."""
    rows = []
    for set_name, entry in metrics["sets"].items():
        for score, cell in ((score, entry["scores"][score]) for score in shown_scores(entry["scores"],
                                                                                      scores)):
            base, tuned, difference = (
                shown_with_interval(cell[key], cell[f"{key}_interval"], "+" if key == "difference" else "")
                for key in ("base", "fine_tuned", "difference"))
            rows.append({"set": f"{set_name}, n={entry['examples']}", "score": score, "base": base,
                         "fine-tuned": tuned, "difference": difference,
                         "p": f"{cell['p']:.4f}{' *' if cell['p'] < SIGNIFICANT else ''}"})
    return pandas.DataFrame(rows)


def baseline_table(metrics: dict[str, Any], scores: tuple[str, ...] = BASELINE_SHOWN) -> Any:
    """Return the pandas table of the trivial baselines, with BASELINE_SHOWN as wide at most; empty without
    --baselines."""
    rows = []
    for set_name, entry in metrics["sets"].items():
        for name, baseline in entry.get("baselines", {}).items():
            cells = {score: shown_with_interval(**baseline["scores"][score])
                     for score in scores if score in baseline["scores"]}
            rows.append({"set": f"{set_name}, n={entry['examples']}", "trivial baseline": name, **cells})
    return pandas.DataFrame(rows)


def gain_table(metrics: dict[str, Any], scores: tuple[str, ...] = SHOWN) -> Any:
    """Return the pandas table of what pieces of the repository change, for each model; empty without
    --repository_tokens."""
    rows = []
    for set_name, entry in metrics["sets"].items():
        for which, model in (("base", "base"), ("fine_tuned", "fine-tuned")):
            cells = entry.get("gain", {}).get(which, {})
            for score in shown_scores(cells, scores):
                cell = cells[score]
                shown = {name: shown_with_interval(cell[key], cell[f"{key}_interval"], sign)
                         for name, key, sign in (("without pieces", "without", ""), ("with them", "with", ""),
                                                 ("difference", "difference", "+"))}
                rows.append({"set": f"{set_name}: {model}", "score": score, **shown,
                             "p": f"{cell['p']:.4f}{' *' if cell['p'] < SIGNIFICANT else ''}"})
    return pandas.DataFrame(rows)


def make_notes(metrics: dict[str, Any]) -> list[str]:
    """Return what belongs below the table: what was compared, how, what was lost, and what no model beats."""
    notes = [f"base: {metrics['base_model']}; fine-tuned: {metrics['fine_tuned']}",
             f"95 % bootstrap intervals, {RESAMPLES} resamples by source file; p: paired approximate "
             f"randomization; * significant at {SIGNIFICANT}; of the loss, less is better; next line: the "
             "first of the completion that holds anything"]
    notes += [f"{name}: {entry['signature']}" for name, entry in metrics["sets"].items()]
    notes += [f"{name}: {entry['reference_ended']:.1f} % of the references end there (their file, the "
              f"method, or the middle), which \"{ENDED}\" of the predictions is to be compared with"
              for name, entry in metrics["sets"].items() if "reference_ended" in entry]
    notes += [f"{name}: of {entry['in_snippets']} of {entry['examples']} examples the completion stands "
              "verbatim, white space aside, in the pieces before it; "
              + ("the set without them is shown too" if entry["in_snippets"] else "all are shown")
              for name, entry in metrics["sets"].items() if "in_snippets" in entry]
    notes += [f"{name}: {entry['reference_parses']:.1f} % of the references leave a file that \"{PARSES}\""
              for name, entry in metrics["sets"].items() if "reference_parses" in entry]
    unparsed = [name for name, entry in metrics["sets"].items() if PARSES not in entry["scores"]]
    if unparsed:
        notes.append(f'no "{PARSES}" of {", ".join(unparsed)}: without whole files, or a grammar for them')
    if any(entry.get("baselines") for entry in metrics["sets"].values()):
        notes.append("trivial baselines: the line before; as many last lines of the prompt as the median "
                     "reference has; the completion of the training prompt with the largest Jaccard index of "
                     f"words, among at most {BASELINE_EXAMPLES} drawn")
    for name, entry in metrics["sets"].items():
        for score, cell in ((score, entry["scores"][score]) for score in shown_scores(entry["scores"],
                                                                                      JUDGED)):
            worse = cell["difference"] > 0 if score in LOWER_IS_BETTER else cell["difference"] < 0
            if cell["p"] < SIGNIFICANT and worse:
                python = ": the model forgot some Python" if name in PYTHON_SETS else ""
                notes.append(f"WARNING: {score} on {name} became significantly worse{python}")
        for which, model in (("base", "the base model"), ("fine_tuned", "the fine-tuned model")):
            for baseline, found in entry.get("baselines", {}).items():
                missed = [score for score, cell in found[which].items()
                          if score in JUDGED and not (cell["difference"] > 0 and cell["p"] < SIGNIFICANT)]
                if missed:
                    notes.append(f'NOT BETTER: {model} on {name} does not significantly beat "{baseline}" '
                                 f"in {', '.join(missed)}")
        if entry.get("baselines") and not any("training" in baseline for baseline in entry["baselines"]):
            notes.append(f"{name}: no train split in its language, "
                         "so no baseline of the most similar training completion")
    return notes


def report(metrics: dict[str, Any], folder: Path) -> None:
    """Print the tables and write them as Markdown, with the chart and metrics.json."""
    tables = [table for table in (make_table(metrics), gain_table(metrics), baseline_table(metrics))
              if len(table)]
    notes = make_notes(metrics)
    with atomic_file(folder / "table.md") as file:
        file.write("\n".join(map(table_as_markdown, tables)) + "\n"
                   + "\n".join(f"- {note}" for note in notes) + "\n")
    write_json(folder / "metrics.json", metrics)
    with atomic_file(folder / "chart.png", binary=True) as file:
        draw_chart(metrics, file)
    with pandas.option_context("display.width", 200, "display.max_columns", None,
                               "display.max_colwidth", None):
        for table in tables:
            for name, rows in table.groupby("set", sort=False):
                print(f"{name}\n{rows.drop(columns='set').to_string(index=False)}\n")
    print("\n".join(notes))


def examples_to_show(change: np.ndarray, seed: int) -> dict[str, list[int]]:
    """Return ten examples, or all of fewer: up to three of the largest gains and losses each, and random."""
    order = np.argsort(change, kind="stable").tolist()
    losses = [i for i in order[:3] if change[i] < 0]
    gains = [i for i in order[:-4:-1] if change[i] > 0]
    rest = [i for i in range(len(change)) if i not in (*gains, *losses)]
    return {"largest gains": gains, "largest losses": losses,
            "random": random.Random(seed).sample(rest, min(len(rest), 10 - len(gains) - len(losses)))}


def token_scores(entry: dict[str, Any]) -> list[str]:
    """Return what a report says of perplexity and lengths; nothing where the models count in other tokens."""
    if "perplexity" not in entry:
        return ["- the models have different tokenizers: what counts tokens is not compared\n"]
    perplexity, length = entry["perplexity"], entry["scores"][LENGTH]
    base, tuned = (shown_with_interval(perplexity[key], perplexity[f"{key}_interval"])
                   for key in ("base", "fine_tuned"))
    return [f"- perplexity of the reference: base {base}, fine-tuned {tuned}\n"
            f"- mean length in tokens: reference {entry['reference_length']:.1f}, "
            f"base {length['base']:.1f}, fine-tuned {length['fine_tuned']:.1f}\n"]


def write_report(metrics: dict[str, Any], tasks: list[Task], answers: dict[ModelOnSet, Answers],
                 changes: dict[str, np.ndarray], folder: Path, seed: int) -> None:
    """Write report.md and change.png: every score, how the examples changed, and ten of each set."""
    parts = [f"# {metrics['fine_tuned']} against {metrics['base_model']}\n",
             table_as_markdown(make_table(metrics, Scores.NAMES)),
             "\n".join(f"- {note}" for note in make_notes(metrics)) + "\n", "![Scores](chart.png)\n"]
    if len(table := gain_table(metrics, Scores.NAMES)):
        parts += ["## What pieces of the repository change\n", table_as_markdown(table)]
    if len(table := baseline_table(metrics, JUDGED)):
        parts += ["## Trivial baselines\n", table_as_markdown(table)]
    parts += ["## Change of each example\n", "![Change of the edit similarity](change.png)\n"]
    for task in tasks:
        entry = metrics["sets"][task.name]
        change = entry["change"]
        quantiles = ", ".join(f"{percent} %: {value:+.1f}" for percent, value in change["quantiles"].items())
        parts += [f"## {task.name}\n",
                  *token_scores(entry),
                  f"- edit similarity: {change['better']} examples became better, {change['equal']} stayed, "
                  f"{change['worse']} became worse; quantiles of the change: {quantiles}\n"]
        for kind, chosen in examples_to_show(changes[task.name], seed).items():
            for i in chosen:
                example = task.examples[i]
                parts += [f"### {task.name} {example.id}, {kind} ({changes[task.name][i]:+.1f})\n"]
                for title, text in (("prompt", example.prompt), ("reference", example.completion),
                                    ("base", answers[ModelOnSet("base", task.name)].texts[i]),
                                    ("fine-tuned", answers[ModelOnSet("fine_tuned", task.name)].texts[i])):
                    parts += [f"{title}:\n", fenced(text)]
    with atomic_file(folder / "change.png", binary=True) as file:
        draw_changes(changes, file)
    with atomic_file(folder / "report.md") as file:
        file.write("\n".join(parts))
