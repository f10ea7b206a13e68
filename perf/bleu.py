"""BLEU with 1,000 bootstrap resamples beside what people use; whole processes, one core, 20,000 pairs.

    bleu.py: corpus_statistics, then resamples as weighted sums of them (bootstrap_sums of stage 5)
    counter: the usual implementation, a Counter of tuples for each order and text; the corpus score alone, as
             each of its resamples would cost as much again
    sacrebleu: corpus_score without its own tokenizer, with its paired resamples of kept statistics

sacreBLEU smooths otherwise (order 1 is left alone), so its score is another one; the first two must agree.

Run:    python perf/bleu.py
"""
import argparse
import random
import sys
import tempfile
from pathlib import Path

from measure import ROOT, Run, alternate, machine, median, run

OURS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import pipeline.scoring.scores
from bleu import bleu_of_sums, corpus_statistics, read_lines
from pathlib import Path
table = corpus_statistics(*(read_lines(Path(sys.argv[2]) / name) for name in ("references", "predictions")))
pipeline.scoring.scores.RESAMPLES = 1000
scores = bleu_of_sums(pipeline.scoring.scores.bootstrap_sums([table.astype(float)], seed=0)[0])
assert len(scores) == 1000
low, high = np.percentile(scores, (2.5, 97.5))
print(f"{float(bleu_of_sums(table.sum(axis=0))):.4f} [{low:.2f}, {high:.2f}]")
"""
COUNTER = """
import math, sys
from collections import Counter
references, predictions = ([line.split() for line in open(f"{sys.argv[2]}/{name}")]
                           for name in ("references", "predictions"))
score, shorter = 0.0, sum(map(len, references)) / sum(map(len, predictions))
for order in range(1, 5):
    matches = totals = 1
    for reference, prediction in zip(references, predictions):
        found, expected = (Counter(tuple(text[i:i + order]) for i in range(len(text) - order + 1))
                           for text in (prediction, reference))
        matches += sum((found & expected).values())
        totals += sum(found.values())
    score += math.log(matches / totals) / 4
print(f"{100 * math.exp(score + min(0, 1 - shorter)):.4f}")
"""
SACREBLEU = """
import sys
from sacrebleu.metrics import BLEU
references, predictions = (open(f"{sys.argv[2]}/{name}").read().splitlines()
                           for name in ("references", "predictions"))
metric = BLEU(tokenize="none", smooth_method="add-k", smooth_value=1)
print(metric.corpus_score(predictions, [references], n_bootstrap=1000))
"""


def write_corpus(folder: Path, pairs: int, tokens: int) -> None:
    """Write references of `tokens` words of unequal frequency, and predictions with 3 words in 10 changed."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(3000)]
    weights = [1 / (1 + i) for i in range(len(words))]
    with open(folder / "references", "w") as references, open(folder / "predictions", "w") as predictions:
        for _ in range(pairs):
            reference, other = (draw.choices(words, weights, k=tokens) for _ in range(2))
            references.write(" ".join(reference) + "\n")
            predicted = (b if draw.random() < 0.3 else a for a, b in zip(reference, other, strict=True))
            predictions.write(" ".join(predicted) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20000)
    parser.add_argument("--tokens", type=int, default=100, help="of each text")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    one_core = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), args.pairs, args.tokens)

        def script(code: str) -> Run:
            return run([sys.executable, "-c", code, ROOT, folder], **one_core)

        results = alternate(args.runs, ours=lambda: script(OURS), counter=lambda: script(COUNTER),
                            sacrebleu=lambda: script(SACREBLEU))
    seconds = {name: median([r.seconds for r in runs]) for name, runs in results.items()}
    score, direct = (results[name][0].output.split()[0] for name in ("ours", "counter"))
    if score != direct:
        sys.exit(f"bleu.py gives {score}, the direct implementation {direct}")
    print(f"{machine()}; {args.pairs} pairs of {args.tokens} tokens")
    print(f"bleu.py, score and 1,000 resamples: {seconds['ours']:.1f} s "
          f"({results['ours'][0].output.strip()}; the aim is at most 15 s)")
    print(f"direct Counters, score alone / bleu.py: {seconds['counter']:.1f} s / {seconds['ours']:.1f} s = "
          f"{seconds['counter'] / seconds['ours']:.1f} (same score)")
    print("sacrebleu, score and 1,000 resamples / bleu.py: "
          f"{seconds['sacrebleu']:.1f} s / {seconds['ours']:.1f} s = "
          f"{seconds['sacrebleu'] / seconds['ours']:.1f} "
          f"(another smoothing: {results['sacrebleu'][0].output.strip()})")


if __name__ == "__main__":
    main()
