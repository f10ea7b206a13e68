"""pipeline/scoring/chrf.py: what sacreBLEU gives, of any texts, and as a function of sums."""
import random

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scoring.chrf import COLUMNS, chrf_of_sums, chrf_statistics

CHRF = sacrebleu.CHRF()
TEXTS = st.one_of(st.text(alphabet="ab (.é\n\t", max_size=20), st.text(max_size=12))
CORPORA = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(CORPORA)
def test_score_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    """The score cannot be compared with anybody else's chrF."""
    references, predictions = map(list, zip(*pairs, strict=True))
    table = chrf_statistics(references, predictions)
    assert table.shape == (len(pairs), COLUMNS)
    expected = CHRF.corpus_score(predictions, [references]).score
    assert float(chrf_of_sums(table.sum(axis=0))) == pytest.approx(expected, abs=1e-9)
    alone = [CHRF.sentence_score(predicted, [reference]).score for reference, predicted in pairs]
    assert chrf_of_sums(table).tolist() == pytest.approx(alone, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(CORPORA)
def test_sums_of_examples_are_enough_for_a_resample(pairs: list[tuple[str, str]]) -> None:
    """The intervals are wrong: the score of a weighted sum is not the score of the corpus with repeated
    examples."""
    references, predictions = map(list, zip(*pairs, strict=True))
    weights = np.arange(len(pairs)) % 4  # some examples are not drawn at all
    found = float(chrf_of_sums(weights @ chrf_statistics(references, predictions)))
    repeated = [pair for pair, weight in zip(pairs, weights, strict=True) for _ in range(weight)]
    if not repeated:
        assert found == 0
        return
    references, predictions = map(list, zip(*repeated, strict=True))
    assert found == pytest.approx(CHRF.corpus_score(predictions, [references]).score, abs=1e-9)


@pytest.mark.parametrize(("references", "predictions", "expected"), [
    ([""], [""], 0), (["a b"], [""], 0), ([""], ["a b"], 0), (["abc def"], ["abc def"], 100),
    (["a\nb  c"], ["abc"], 100), (["ab"], ["cd"], 0), (["abcdefgh", ""], ["abcdefgh", ""], 100),
    (["abcdefgh", "xyz"], ["abcdefgh", ""], None), (["ab", "abcdefgh"], ["abcdefgh", "b"], None)])
def test_table(references: list[str], predictions: list[str], expected: float | None) -> None:
    """An empty side, or a text that is shorter than the orders, ends the benchmark or is scored as right."""
    found = float(chrf_of_sums(chrf_statistics(references, predictions).sum(axis=0)))
    assert found == pytest.approx(CHRF.corpus_score(predictions, [references]).score, abs=1e-9)
    assert 0 <= found <= 100 + 1e-9
    assert expected is None or found == pytest.approx(expected)


def test_many_corpora_at_once() -> None:
    """2,000 resamples are scored one by one, or another than its own sums is scored."""
    draw = random.Random(0)
    references, predictions = (["".join(draw.choices("abc d", k=draw.randrange(30))) for _ in range(40)]
                               for _ in range(2))
    table = chrf_statistics(references, predictions)
    sums = np.random.default_rng(0).integers(0, 3, size=(5, 7, 40)) @ table
    found = chrf_of_sums(sums)
    assert found.shape == (5, 7)
    assert found[3, 2] == pytest.approx(float(chrf_of_sums(sums[3, 2])))
    assert len(np.unique(found.round(6))) == 35
