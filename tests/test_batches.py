"""pipeline/training/batches.py: which examples come together, in which order, and how they are padded."""
import numpy as np
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import encoded_rows

from pipeline.model.padding import IGNORED_LABEL, right_padded
from pipeline.training.batches import step_order, token_batches

ROW_LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def rows_of(lengths: list[int]) -> list[dict[str, list[int]]]:
    return [{"input_ids": list(range(n)), "labels": [IGNORED_LABEL] * (n // 2) + list(range(n // 2, n))}
            for n in lengths]


def test_end_of_text_is_learned_where_it_is_also_the_padding() -> None:
    """The model never stops: the end-of-text token is masked out because it doubles as the padding token."""
    tokenizer = tiny_models.make_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = encoded_rows()
    batch = right_padded(rows, tokenizer.eos_token_id)
    longest = batch["input_ids"].shape[1]
    learned = dict(zip(batch["positions"].tolist(), batch["targets"].tolist(), strict=True))
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        assert learned[i * longest + length - 2] == tokenizer.eos_token_id
        assert not any(i * longest + place in learned for place in range(length - 1, longest))
        assert batch["input_ids"][i, :length].tolist() == row["input_ids"]


@settings(max_examples=100, deadline=None)
@given(ROW_LENGTHS, st.integers(1, 400))
def test_batches_keep_to_the_budget_and_lose_no_row(lengths: list[int], budget: int) -> None:
    """A batch needs more memory than --tokens_per_batch allows, or an example is never trained on."""
    rows = rows_of(lengths)
    batches = list(token_batches(rows, budget))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    for batch in batches:
        padded = right_padded(batch, 0)["input_ids"].shape
        # its own longest row, not that of the set
        assert padded == (len(batch), max(len(row["input_ids"]) for row in batch))
        assert len(batch) == 1 or padded[0] * padded[1] <= budget


@settings(max_examples=100, deadline=None)
@given(ROW_LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_order_is_a_permutation_that_the_seed_determines(lengths: list[int], per_step: int, seed: int,
                                                         epoch: int) -> None:
    """Examples are left out or repeated, or a resumed run sees them in another order."""
    array = np.array(lengths)
    order = step_order(array, per_step, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == step_order(array.copy(), per_step, seed, epoch)


def test_order_differs_between_epochs_and_puts_like_lengths_together() -> None:
    """Every epoch has the same order, or most of a batch is padding."""
    lengths = np.random.default_rng(0).integers(1, 200, size=1603)
    order = step_order(lengths, 16, 0, 0)
    assert order != step_order(lengths, 16, 0, 1)
    assert order != step_order(lengths, 16, 1, 0)
    steps = [lengths[order[i:i + 16]] for i in range(0, 1600, 16)]
    assert np.mean([step.max() - step.min() for step in steps]) < 10  # at random: about 175
    firsts = [step.mean() for step in steps]
    assert np.abs(np.corrcoef(firsts, range(len(firsts)))[0, 1]) < 0.3  # short and long steps come mixed
