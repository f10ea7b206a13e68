"""Sequences that are written as prefix, suffix and middle: --fim_rate."""
import argparse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.fim.spans import Span, draw_middle
from pipeline.fim.syntax_units import UnitFinder
from pipeline.prompts.fim_formats import (
    InfillingFormat,
    encode_beginnings,
    encode_within,
    find_format,
    missing_tokens,
)
from pipeline.run.errors import PipelineError

STREAM = 19  # keeps the middles' random numbers apart from others of the same seed


@dataclass
class Infilling:
    """How many sequences are written with a middle, and how."""
    format: InfillingFormat
    rate: float  # of the sequences
    seed: int
    units: UnitFinder = field(default_factory=UnitFinder)
    kinds: Counter = field(default_factory=Counter)  # how many middles of each kind were written

    def generator(self, number: int) -> Any:
        """Return the random numbers of the sequence `number`, the same in every run."""
        return np.random.default_rng([self.seed, STREAM, number])


@dataclass
class Infilled:
    """One sequence with a middle."""
    ids: list[int]
    first_label: int  # tokens before it are no labels: they were ones in the sequence before
    middle: int  # where the middle begins
    kind: str


def choose_infilling(args: argparse.Namespace, tokenizer: Any) -> Infilling | None:
    """Return what --fim_rate, --fim_order and --fim_tokens ask for; None without --fim_rate.

    Raises PipelineError where the model has no tokens for it, or those that are named cannot be used.
    """
    if not args.fim_rate:
        for name in ("fim_order", "fim_tokens"):
            if getattr(args, name):
                raise PipelineError(f"--{name}: says how, but not how many; give --fim_rate too")
        return None
    name = args.model_name_or_path
    found = find_format(tokenizer, name, args.fim_order, args.fim_tokens)
    if found is None:
        raise missing_tokens(tokenizer, name)
    return Infilling(found, args.fim_rate, args.seed)


def check_unused(ids: np.ndarray, infilling: InfillingFormat) -> None:
    """Raise PipelineError where the text of a file holds a token that is to mark a part."""
    for token, number in zip(infilling.tokens, infilling.numbers, strict=True):
        if (ids == number).any():
            raise PipelineError(f"--fim_tokens: {token} occurs in the files of the data set, and would mean "
                                "two things; name entries of the vocabulary that occur in no text")


def infill(tokenizer: Any, infilling: Infilling, text: str, kept: int, ends_file: bool, most_tokens: int,
           generator: Any, units: list[Span] | None) -> Infilled | None:
    """Return a piece of a file as prefix, suffix and middle, of at most `most_tokens`; None where it has no
    middle.

    The first `kept` characters were labels in the sequence before: they are context, and in SPM, where the
    prefix comes second, left out.  What does not fit is cut from the end of the suffix.
    """
    # a middle up to the end of a piece would say that nothing comes behind it, where only the piece ends
    drawn = draw_middle(text, kept, len(text) if ends_file else len(text) - 1, generator, units)
    if drawn is None:
        return None
    kind, begin, end = drawn
    prefix_first = infilling.format.layout.index("prefix") < infilling.format.layout.index("suffix")
    if kept and prefix_first:
        [context] = encode_beginnings(tokenizer, [text[:kept]])
        before, suffix, middle = encode_within(tokenizer, [text[kept:begin], text[end:], text[begin:end]])
    else:
        context, [before] = [], encode_beginnings(tokenizer, [text[kept:begin]])
        suffix, middle = encode_within(tokenizer, [text[end:], text[begin:end]])
    over = infilling.format.added_tokens() + sum(map(len, (context, before, suffix, middle))) - most_tokens
    if over > 0:
        cut = min(over, len(suffix))
        suffix, over = suffix[:len(suffix) - cut], over - cut
        context, before = context[over:], before[max(0, over - len(context)):]
    ids = infilling.format.sequence(context + before, suffix, middle)
    if len(ids) > most_tokens or not middle:
        return None
    # every layout begins with a mark, which is no label
    first_label = len(infilling.format.beginning) + 1 + len(context)
    return Infilled(ids, first_label, len(ids) - len(middle) - 1, kind)
