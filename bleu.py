"""The BLEU of CodeXGLUE's method generation benchmark, 0 to 100.

Tokens are what stands between white space.  Orders 1 to 4; one is added to the matches and to the totals of every
order; the brevity penalty is taken over the corpus (Papineni et al. 2002, smoothed as by Lin and Och 2004, and as in
`compute_bleu` of TensorFlow's NMT tutorial, which the benchmark uses).  One reference for each prediction.

The score of a corpus is a function of the sum of ten numbers an example (`statistics`), so that a resample of the
corpus costs a weighted sum.  Time: linear in the number of tokens.

Run:    python bleu.py --references references.txt --predictions predictions.txt
"""
import argparse
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline_io import PipelineError, run_stage

MAX_ORDER = 4
STATISTICS = 2 * MAX_ORDER + 2


def statistics(reference: str, prediction: str) -> list[int]:
    """Return the sufficient statistics of one pair: matches of orders 1 to 4, totals of orders 1 to 4, and the
    lengths of reference and prediction in tokens."""
    expected, found = reference.split(), prediction.split()
    matches, totals = [], []
    for order in range(1, MAX_ORDER + 1):
        grams = Counter(zip(*(found[i:] for i in range(order)), strict=False))
        in_reference = Counter(zip(*(expected[i:] for i in range(order)), strict=False))
        matches.append(sum(min(count, in_reference[gram]) for gram, count in grams.items() if gram in in_reference))
        totals.append(max(0, len(found) - order + 1))
    return [*matches, *totals, len(expected), len(found)]


def corpus_statistics(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """Return the (examples, STATISTICS) statistics of all pairs.  PipelineError where there is none, or a side is longer."""
    if len(references) != len(predictions):
        raise PipelineError(f"{len(references)} references but {len(predictions)} predictions; there must be one for each")
    if not len(references):
        raise PipelineError("no references: the BLEU of an empty corpus is not defined")
    return np.array([statistics(r, p) for r, p in zip(references, predictions, strict=True)], dtype=np.int64)


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return the BLEU, 0 to 100, of each corpus whose summed statistics are a row of `sums` (..., STATISTICS).

    A corpus in which every prediction is empty scores 0; the benchmark's own code divides by zero there.
    """
    sums = np.asarray(sums, dtype=np.float64)
    matches, totals = sums[..., :MAX_ORDER], sums[..., MAX_ORDER:2 * MAX_ORDER]
    reference_length, length = sums[..., -2], sums[..., -1]
    log_precision = np.log((matches + 1) / (totals + 1)).sum(axis=-1) / MAX_ORDER
    ratio = np.divide(reference_length, length, out=np.full_like(length, np.inf), where=length > 0)
    return 100 * np.exp(log_precision + np.minimum(0.0, 1 - ratio))


def corpus_bleu(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the BLEU of a corpus, 0 to 100.  PipelineError where it is empty or the numbers differ."""
    return float(bleu_of_sums(corpus_statistics(references, predictions).sum(axis=0)))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, one example a line; an empty line is an empty example."""
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; check the name")
    with open(path, encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n") for line in file]


def bleu(args: argparse.Namespace) -> None:
    """Print the BLEU of the two files."""
    references, predictions = read_lines(args.references), read_lines(args.predictions)
    for number, (reference, prediction) in enumerate(itertools.zip_longest(references, predictions), start=1):
        if reference is None or prediction is None:
            shorter = args.references if reference is None else args.predictions
            raise PipelineError(f"{shorter}: ends before line {number}; {len(references)} references, {len(predictions)} predictions")
    print(f"{corpus_bleu(references, predictions):.2f}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, help="text file, one reference a line")
    parser.add_argument("--predictions", type=Path, required=True, help="text file, one prediction a line, in the same order")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(bleu, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
