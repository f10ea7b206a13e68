"""pipeline/preparation/cutting.py: the places of tokens in their text."""
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from preparation_runs import TEXTS

from pipeline.preparation.cutting import byte_lengths, find_cuts, offsets_from_lengths


@given(text=TEXTS)
@settings(deadline=None, max_examples=200)
def test_offsets_from_lengths_are_those_of_the_library(tokenizer_folder: Path, text: str) -> None:
    """The fast way to offsets cuts elsewhere than the tokenizer's own offsets, or within a character."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    lengths = byte_lengths(tokenizer)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if not encoding.ids:
        return
    fast = offsets_from_lengths(text, lengths[np.array(encoding.ids)])
    slow = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    (position, ranks), (expected_position, expected_ranks) = find_cuts(text, fast), find_cuts(text, slow)
    assert ranks == expected_ranks
    possible = np.frombuffer(ranks, dtype=np.uint8) > 0
    assert (position[possible] == expected_position[possible]).all()


def test_tokens_of_another_text_are_noticed() -> None:
    """A tokenizer that normalizes its input gets offsets that do not fit the text."""
    assert offsets_from_lengths("abc", np.array([1, 1])) is None
