"""Scores, their intervals and their paired tests."""
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from bleu import bleu_of_sums, corpus_statistics
from pipeline.scoring.chrf import chrf_of_sums, chrf_statistics
from pipeline.tasks.task import Task, first_line

RESAMPLES, INTERVAL = 2000, (2.5, 97.5)
RESAMPLE_BLOCK = 100  # resamples whose weights are in memory at one time
SIGNIFICANT = 0.05
NEXT_LINE, NEXT_LINE_SIMILARITY = "next line exact, %", "next line similarity"
LOSS = "loss, nats a token"  # of the reference behind its prompt; its exponential is the perplexity
LOSS_BYTE = "loss, nats a byte"  # the same; what alone can be compared where the tokenizers differ
ENDED = "ended by itself, %"  # of the predictions, before their budget; neither more nor less is better
PARSES = "still parses, %"  # of the predictions: the file up to the cursor, without a new error
LENGTH = "mean length, tokens"  # of the predictions
JUDGED = (NEXT_LINE, NEXT_LINE_SIMILARITY, "edit similarity", "BLEU", "chrF", PARSES, LOSS)
SHOWN = (*JUDGED, ENDED)  # in the table that is printed
LOWER_IS_BETTER = {LOSS, LOSS_BYTE}


def edit_similarity(reference: str, prediction: str) -> float:
    """Return the edit similarity of one pair, 0 to 100, which CodeXGLUE's evaluator rounds."""
    return fuzz.ratio(reference, prediction)


class Scores:
    """The scores of one model on one set, for the whole set and for resamples of it.

    Every score is a function of sums over examples; the sums are kept for each group (source file), because
    examples of one file are not independent.  Without `lengths` (tokens of the predictions), `losses` (nats
    and tokens of the references), `ended` or `parses` (None: not known) the scores that need them are NaN.
    """
    NAMES = (NEXT_LINE, NEXT_LINE_SIMILARITY, "edit similarity", "edit similarity, unrounded", "BLEU", "chrF",
             LOSS, LOSS_BYTE, PARSES, ENDED, LENGTH)

    def __init__(self, task: Task, predictions: list[str], lengths: list[int] | None = None,
                 losses: list[tuple[float, int]] | None = None, ended: list[bool] | None = None,
                 parses: list[bool | None] | None = None):
        references = [example.reference for example in task.examples]
        normalized = [task.normalize(prediction) for prediction in predictions]
        lines = [(example.first_line, first_line(prediction, task.normalize, task.lines))
                 for prediction, example in zip(predictions, task.examples, strict=True)]
        self.similarity = np.array([edit_similarity(reference, prediction)
                                    for reference, prediction in zip(references, normalized, strict=True)])
        missing = np.full(len(references), np.nan)
        nats, tokens = (missing, missing) if losses is None else zip(*losses, strict=True)
        means = [[100.0 * (reference == line) for reference, line in lines],
                 [round(edit_similarity(reference, line)) for reference, line in lines],
                 self.similarity.round(), self.similarity,
                 missing if ended is None else [100.0 * end for end in ended],
                 missing if lengths is None else lengths]
        parses = [None] * len(references) if parses is None else parses
        columns = np.column_stack([np.ones(len(references)), *means, nats, tokens,
                                   [100.0 * (found is True) for found in parses],
                                   [found is not None for found in parses],
                                   [len(example.completion.encode()) for example in task.examples],
                                   corpus_statistics(references, normalized),
                                   chrf_statistics(references, normalized)])
        _, group = np.unique([example.group for example in task.examples], return_inverse=True)
        self.sums = np.zeros((group.max() + 1, columns.shape[1]))
        np.add.at(self.sums, group, columns)

    @staticmethod
    def of(sums: np.ndarray) -> np.ndarray:
        """Return (..., scores) in the order of NAMES for (..., columns) sums."""
        exact, line, rounded, similarity, ended, length = np.moveaxis(sums[..., 1:7] / sums[..., :1], -1, 0)
        nats, tokens, parses, known, size = (sums[..., column] for column in range(7, 12))
        a_token, a_byte, parsed = (np.divide(sum_, number, out=np.full_like(nats, np.nan), where=number > 0)
                                   for sum_, number in ((nats, tokens), (nats, size), (parses, known)))
        bleu = bleu_of_sums(sums[..., 12:22])
        chrf = chrf_of_sums(sums[..., 22:])
        return np.stack([exact, line, rounded, similarity, bleu, chrf, a_token, a_byte, parsed, ended,
                         length], axis=-1)


def bootstrap_sums(tables: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return each (groups, columns) table's (RESAMPLES, columns) sums, from the same resamples of groups."""
    groups = len(tables[0])
    generator = np.random.default_rng(seed)
    blocks: list[list[np.ndarray]] = [[] for _ in tables]
    for _ in range(0, RESAMPLES, RESAMPLE_BLOCK):
        drawn = generator.integers(groups, size=(RESAMPLE_BLOCK, groups))
        weights = np.stack([np.bincount(row, minlength=groups) for row in drawn]).astype(np.float64)
        for table, found in zip(tables, blocks, strict=True):
            found.append(weights @ table)
    return [np.concatenate(found) for found in blocks]


def compare(base: Scores, tuned: Scores, seed: int) -> dict[str, dict[str, Any]]:
    """Return for each score both values, their difference, 95 % intervals, and the p of no difference.

    p, two-sided: the share of random exchanges of the two models' predictions, group by group, whose
    difference is as large.  A score that one of them has not (the loss of a trivial baseline) is left out.
    """
    resampled = [Scores.of(sums) for sums in bootstrap_sums([base.sums, tuned.sums], seed)]
    values = [Scores.of(scores.sums.sum(axis=0)) for scores in (base, tuned)]
    generator = np.random.default_rng(seed + 1)
    exceeded = np.zeros(len(Scores.NAMES))
    observed = np.abs(values[1] - values[0])
    for _ in range(0, RESAMPLES, RESAMPLE_BLOCK):
        exchange = generator.integers(0, 2, size=(RESAMPLE_BLOCK, len(base.sums))).astype(np.float64)
        moved = exchange @ (tuned.sums - base.sums)
        difference = Scores.of(tuned.sums.sum(axis=0) - moved) - Scores.of(base.sums.sum(axis=0) + moved)
        exceeded += (np.abs(difference) >= observed - 1e-12).sum(axis=0)
    result = {}
    for k, name in enumerate(Scores.NAMES):
        if np.isnan(values[0][k] + values[1][k]):
            continue

        def interval(numbers: np.ndarray, k: int = k) -> list[float]:
            return np.nanpercentile(numbers[:, k], INTERVAL).round(4).tolist()
        result[name] = {"base": round(float(values[0][k]), 4), "base_interval": interval(resampled[0]),
                        "fine_tuned": round(float(values[1][k]), 4),
                        "fine_tuned_interval": interval(resampled[1]),
                        "difference": round(float(values[1][k] - values[0][k]), 4),
                        "difference_interval": interval(resampled[1] - resampled[0]),
                        "p": round(float((exceeded[k] + 1) / (RESAMPLES + 1)), 5),
                        "lower_is_better": name in LOWER_IS_BETTER}
    return result
