"""The BLEU of CodeXGLUE's method generation benchmark, 0 to 100.

Tokens are what stands between white space.  Orders 1 to 4; one is added to the matches and to the totals of
every order; the brevity penalty is taken over the corpus (Papineni et al. 2002, smoothed as by Lin and Och
2004, and as in `compute_bleu` of TensorFlow's NMT tutorial, which the benchmark uses).  One reference for
each prediction.

The score of a corpus is a function of the sum of ten numbers an example (`corpus_statistics`), so that a
resample of the corpus costs a weighted sum.  Time: linear in the number of tokens.

Run:    python bleu.py --references references.txt --predictions predictions.txt
"""
import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.run.errors import PipelineError
from pipeline.run.stage import run_stage

MAX_ORDER = 4
BLOCK_EXAMPLES = 500  # counted together: few calls of numpy, and arrays that stay in the processor's cache


def corpus_statistics(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """Return the (examples, 10) sufficient statistics of all pairs.

    They are the matches of orders 1 to 4, the totals of orders 1 to 4, and the lengths of reference and
    prediction in tokens.  PipelineError where there is no pair, or a side is longer.
    """
    if len(references) != len(predictions):
        raise PipelineError(f"{len(references)} references but {len(predictions)} predictions; "
                            "there must be one for each")
    if not len(references):
        raise PipelineError("no references: the BLEU of an empty corpus is not defined")
    blocks = (slice(start, start + BLOCK_EXAMPLES) for start in range(0, len(references), BLOCK_EXAMPLES))
    return np.concatenate([_block_statistics(references[block], predictions[block]) for block in blocks])


def _block_statistics(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """Return the statistics of a block.

    An n-gram of an example is numbered by the number of its first n - 1 tokens and its last token, so that
    counting n-grams is counting whole numbers.
    """
    examples = len(references)
    texts = [text.split() for text in (*references, *predictions)]
    lengths = np.array([len(text) for text in texts])
    vocabulary: dict[str, int] = {}
    tokens = np.array([vocabulary.setdefault(token, len(vocabulary)) for text in texts for token in text],
                      dtype=np.int64)
    text = np.repeat(np.arange(2 * examples), lengths)  # which text a token belongs to
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(tokens))  # tokens up to the end of that text
    start = np.arange(len(tokens))  # where each n-gram begins
    gram = text % examples  # its number; of order 0, one for each example
    matches = np.zeros((examples, MAX_ORDER), dtype=np.int64)
    for order in range(1, MAX_ORDER + 1):
        whole = left[start] >= order
        start, gram = start[whole], gram[whole]
        kinds, gram = np.unique(gram * len(vocabulary) + tokens[start + order - 1], return_inverse=True)
        predicted = text[start] >= examples
        in_both = np.minimum(np.bincount(gram[predicted], minlength=len(kinds)),
                             np.bincount(gram[~predicted], minlength=len(kinds)))
        example = np.zeros(len(kinds), dtype=np.int64)
        example[gram] = text[start] % examples
        np.add.at(matches[:, order - 1], example, in_both)
    expected, found = lengths[:examples, None], lengths[examples:, None]
    return np.hstack([matches, np.maximum(0, found - np.arange(MAX_ORDER)), expected, found])


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return the BLEU, 0 to 100, of each corpus whose summed statistics are a row of `sums` (..., 10).

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
    # a carriage return ends a line too, as in the benchmark's own reading
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def bleu(args: argparse.Namespace) -> None:
    """Print the BLEU of the two files."""
    references, predictions = read_lines(args.references), read_lines(args.predictions)
    for number, (reference, prediction) in enumerate(itertools.zip_longest(references, predictions), start=1):
        if reference is None or prediction is None:
            shorter = args.references if reference is None else args.predictions
            raise PipelineError(f"{shorter}: ends before line {number}; {len(references)} references, "
                                f"{len(predictions)} predictions")
    print(f"{corpus_bleu(references, predictions):.2f}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, help="text file, one reference a line")
    parser.add_argument("--predictions", type=Path, required=True,
                        help="text file, one prediction a line, in the same order")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(bleu, build_parser().parse_args(argv), any_bytes=("references", "predictions"), prints=True)


if __name__ == "__main__":
    main()
