"""Trivial baselines: what needs no model."""
import re
from array import array
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from pipeline.data.datasets import draw
from pipeline.retrieval.snippets import PIECE_LINES
from pipeline.scoring.scores import Scores, compare
from pipeline.tasks.task import Task

BASELINE_EXAMPLES = 20_000  # training examples among which the most similar one is looked for
_WORD = re.compile(r"\w+")


def trivial_predictions(task: Task, train: Any, seed: int) -> dict[str, list[str]]:
    """Return what needs no model, by name.

    Nothing; the prompt's last lines, as many as the median reference has; where pieces of a repository were
    found, as many lines behind the most similar line of the best; and, where `train` has completions of the
    task's language, that of the most similar training prompt.
    """
    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip()]

    median = max(1, round(float(np.median([len(lines(example.completion)) for example in task.examples]))))
    prompts = [example.prompt for example in task.examples]
    last_lines = f"the prompt's last {median} line{'s' * (median > 1)}"
    found = {"nothing": [""] * len(prompts),
             "the line before": ["\n".join(lines(prompt)[-1:]) for prompt in prompts],
             last_lines: ["\n".join(lines(prompt)[-median:]) for prompt in prompts]}
    if any(example.best_snippet for example in task.examples):
        found["lines behind the best piece's most similar line"] = [
            lines_behind(example.best_snippet, prompt, median)
            for example, prompt in zip(task.examples, prompts, strict=True)]
    if train is not None and len(train):
        chunks = [example.chunk or example.prompt for example in task.examples]
        found["most similar training completion"] = similar_completions(chunks, train, seed)
    return found


def lines_behind(piece: str, prompt: str, number: int) -> str:
    """Return the `number` lines that follow, in a piece and what comes behind it in its file, the line of the
    piece that is most similar to the prompt's last; the first of equals.  Lines of white space do not
    count."""
    lines, last = ([line for line in text.splitlines() if line.strip()] for text in (piece, prompt))
    if not lines or not last:
        return ""
    similarity = [fuzz.ratio(line.strip(), last[-1].strip()) for line in lines[:PIECE_LINES]]
    place = int(np.argmax(similarity)) + 1
    return "\n".join(lines[place:place + number])


def similar_completions(prompts: list[str], train: Any, seed: int) -> list[str]:
    """Return for each prompt the completion of the training prompt that shares most words with it.

    Similarity: Jaccard over the sets of words, among at most BASELINE_EXAMPLES training examples drawn with
    the seed; the first of equals.  Memory: 4 bytes for each word of a training prompt, and one batch of
    texts.
    """
    chosen = draw(len(train), BASELINE_EXAMPLES, seed)
    rows_of: dict[str, array] = {}
    sizes: list[int] = []
    for batch in train.select(chosen).select_columns("prompt").iter(1000):
        for prompt in batch["prompt"]:
            words = set(_WORD.findall(prompt))
            for word in words:
                rows_of.setdefault(word, array("i")).append(len(sizes))
            sizes.append(len(words))
    size, best = np.array(sizes), []
    for words in (set(_WORD.findall(prompt)) for prompt in prompts):
        rows = [np.frombuffer(rows_of[word], dtype=np.intc) for word in words if word in rows_of]
        shared = np.bincount(np.concatenate(rows), minlength=len(size)) if rows else np.zeros(len(size))
        best.append(chosen[int(np.argmax(shared / np.maximum(1, size + len(words) - shared)))])
    return [train[row]["completion"] for row in best]


def against_baselines(task: Task, models: list[Scores], train: Any, seed: int) -> dict[str, Any]:
    """Return each trivial baseline's scores, and what the models, the base first, gain on it."""
    result: dict[str, Any] = {}
    for name, predictions in trivial_predictions(task, train, seed).items():
        baseline = Scores(task, predictions)
        cells = [compare(baseline, scores, seed) for scores in models]
        result[name] = {"scores": {score: {"value": cell["base"], "interval": cell["base_interval"]}
                                   for score, cell in cells[0].items()}}
        for which, compared in zip(("base", "fine_tuned"), cells, strict=True):
            result[name][which] = {
                score: {key: cell[key] for key in ("difference", "difference_interval", "p")}
                for score, cell in compared.items()}
    return result
