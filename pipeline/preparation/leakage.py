"""Leakage: what of the test split can be found in train."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.data.clean_file import CleanFile
from pipeline.data.near_duplicates import ngram_hashes
from pipeline.preparation.cleaning import is_trivial
from pipeline.preparation.cutting import Choice, windows_of

LEAK_NGRAM = 13  # the run of tokens that counts as contamination, as in Brown et al. 2020
SHORT_NGRAM = 5  # by which completions that are shorter than that are looked for
LEAK_FILTER_BITS = 22  # of a hash, that are looked at before it is looked for: 4 MB

Way = tuple[list[str | None], Choice]  # each file's split, and which of its windows are examples


@dataclass
class LeakSide:
    """The test completions of one way to split, and what of them was found in its train split."""
    name: str
    splits: list[str | None]
    choice: Choice
    completions: list[str] = field(default_factory=list)
    grams: list[np.ndarray] = field(default_factory=list)  # each completion's hashes of LEAK_NGRAM tokens
    short_grams: list[np.ndarray] = field(default_factory=list)  # of SHORT_NGRAM, where it has none of those
    verbatim: list[bool] = field(default_factory=list)
    # place of a hash -> completions that can only stand where it does
    probes: dict[int, list[int]] = field(default_factory=dict)
    unprobed: list[int] = field(default_factory=list)  # completions without any hash
    present: np.ndarray | None = None  # (hashes looked for,) whether each stands in train

    def add(self, file: CleanFile, windows: np.ndarray) -> None:
        """Take up the completions of a test file."""
        hashes = ngram_hashes(file.token_ids, LEAK_NGRAM)
        short_hashes = ngram_hashes(file.token_ids, SHORT_NGRAM)
        for _, cut, end, _, first, last in windows.tolist():
            self.completions.append(file.text[cut:end].strip())
            self.grams.append(hashes[first:max(first, last - LEAK_NGRAM + 1)])
            self.short_grams.append(short_hashes[first:max(first, last - SHORT_NGRAM + 1)]
                                    if not len(self.grams[-1]) else hashes[:0])
            self.verbatim.append(False)

    def choose_probes(self, wanted: np.ndarray) -> None:
        """Choose for each completion the one of its hashes that the fewest others hold.

        Not its first or last: at its ends a completion may be cut into other tokens where something else
        stands beside it.  `wanted`: all hashes, sorted.
        """
        self.present = np.zeros(len(wanted), dtype=bool)
        grams_of = [long if len(long) else short
                    for long, short in zip(self.grams, self.short_grams, strict=True)]
        inner = [np.unique(np.searchsorted(wanted, grams[1:-1] if len(grams) > 2 else grams))
                 for grams in grams_of]
        frequency = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *inner]), minlength=len(wanted))
        for i, places in enumerate(inner):
            if len(places):
                self.probes.setdefault(int(places[frequency[places].argmin()]), []).append(i)
            else:
                self.unprobed.append(i)

    def search(self, hits: np.ndarray, text: str) -> None:
        """Look for completions in a train file's text; `hits`: the places of its hashes that some hold."""
        self.present[hits] = True
        candidates = [i for place in hits.tolist() for i in self.probes.get(place, ())] + self.unprobed
        for i in candidates:
            self.verbatim[i] = self.verbatim[i] or self.completions[i] in text

    def shares(self, wanted: np.ndarray) -> dict[str, dict[str, float]]:
        """Return the shares of completions that were found, for all of them and without the trivial ones."""
        found = [self.present[np.searchsorted(wanted, grams)] for grams in self.grams]
        telling = [i for i, text in enumerate(self.completions) if not is_trivial(text)]
        result = {}
        for name, chosen in (("all", list(range(len(found)))), ("without trivial ones", telling)):
            number = max(1, len(chosen))
            means = [found[i].mean() for i in chosen if len(found[i])]
            shares = {"verbatim_in_train": sum(self.verbatim[i] for i in chosen) / number,
                      "any_13_gram_in_train": sum(bool(found[i].any()) for i in chosen) / number,
                      "mean_share_of_13_grams_in_train": float(np.mean(means)) if means else 0.0}
            result[name] = {"completions": len(chosen)} | {key: round(shares[key], 4) for key in shares}
        return result


def measure_leakage(read: Callable[[], Iterator[CleanFile]], ways: dict[str, Way]) -> dict[str, Any]:
    """Return for each way to split the shares of test completions that can be found in its train split.

    `read` yields the same files each time it is called, `ways` gives each file's split and which of its
    windows are examples.  A completion is
    verbatim in train if a train file holds its text, white space at the ends aside.  Runs of LEAK_NGRAM
    tokens are compared by 64-bit hashes.  Time: two passes over the files; memory: the test splits.
    """
    sides = [LeakSide(name, splits, choice) for name, (splits, choice) in ways.items()]
    for number, file in enumerate(read()):
        for side in sides:
            if side.splits[number] == "test":
                side.add(file, windows_of(file, "test", side.choice))
    wanted = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64),
                                       *(g for side in sides for g in side.grams + side.short_grams)]))
    any_short = any(len(g) for side in sides for g in side.short_grams)
    widths = (LEAK_NGRAM, SHORT_NGRAM) if any_short else (LEAK_NGRAM,)
    shift = np.uint64(64 - LEAK_FILTER_BITS)
    # most hashes of a train file are none of those looked for: told by a look-up
    possible = np.zeros(1 << LEAK_FILTER_BITS, dtype=bool)
    possible[wanted >> shift] = True
    for side in sides:
        side.choose_probes(wanted)
    for number, file in enumerate(read()):
        training = [side for side in sides if side.splits[number] == "train"]
        if training and len(wanted):
            hashes = np.concatenate([ngram_hashes(file.token_ids, width) for width in widths])
            hashes = np.unique(hashes[possible[hashes >> shift]])
            places = np.searchsorted(wanted, hashes)
            hits = places[wanted[np.minimum(places, len(wanted) - 1)] == hashes]
        else:
            hits = np.zeros(0, dtype=np.int64)
        for side in training:
            side.search(hits, file.text)
    return {side.name: side.shares(wanted) for side in sides}
