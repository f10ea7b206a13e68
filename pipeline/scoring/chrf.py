"""chrF (Popović 2015), with sacreBLEU's counts and settings: character n-grams up to 6, beta 2, no white
space.

As `bleu.py` has it for BLEU, the score of a corpus is a function of the sum of a few numbers an example, so
that a resample of the corpus costs a weighted sum.
"""
from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import CHRF

METRIC = CHRF()
ORDER = METRIC.char_order
COLUMNS = 3 * ORDER  # for each order: n-grams of the prediction, of the reference, and in both


def chrf_statistics(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """Return the (examples, COLUMNS) counts of all pairs."""
    # the library's own counts; its public functions give scores alone
    counts = METRIC._extract_corpus_statistics(list(predictions), [list(references)])
    return np.array(counts, dtype=np.float64).reshape(len(references), COLUMNS)


def chrf_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return the chrF, 0 to 100, of each corpus whose summed counts are a row of `sums` (..., COLUMNS).

    Precision and recall are averaged over the orders that both sides have n-grams of; without any it is 0.
    """
    predicted, expected, matches = np.moveaxis(np.asarray(sums).reshape(*sums.shape[:-1], ORDER, 3), -1, 0)
    there = (predicted > 0) & (expected > 0)
    orders = np.maximum(1, there.sum(axis=-1))
    precision = (there * matches / np.maximum(1, predicted)).sum(axis=-1) / orders
    recall = (there * matches / np.maximum(1, expected)).sum(axis=-1) / orders
    factor = METRIC.beta**2
    weighted = factor * precision + recall
    return 100 * np.divide((1 + factor) * precision * recall, weighted, out=np.zeros_like(weighted),
                           where=weighted > 0)
