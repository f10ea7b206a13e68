"""pipeline/training/sequences.py: whole files as sequences, and which of their tokens are labels."""
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import tiny_models
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_runs import TEXTS

from pipeline.data.encoded_examples import EncodedExamples
from pipeline.model.padding import IGNORED_LABEL
from pipeline.model.tokenizers import encode_prompts
from pipeline.training.sequences import (
    FILES_PER_BATCH,
    OVERLAP_TOKENS,
    FileBound,
    encode_texts,
    files_in_random_order,
    sequence_places,
    sequences_of,
)
from pipeline.training.training_data import MIN_LENGTH

LENGTHS = st.one_of(st.integers(MIN_LENGTH, 60), st.integers(MIN_LENGTH, 700))


def labels_of(examples: EncodedExamples, index: int) -> int:
    """Return how many tokens of an example come before its first label."""
    return examples[index]["labels"].count(IGNORED_LABEL)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), LENGTHS)
def test_every_token_is_a_label_once(count: int, sequence_tokens: int) -> None:
    """Tokens of a file are never learned, or twice; or a sequence is longer than the model can take."""
    labels: Counter = Counter()
    places = list(sequence_places(count, sequence_tokens))
    for number, (begin, label, end) in enumerate(places):
        assert 0 <= begin < label < end <= count
        assert end - begin <= sequence_tokens
        assert label - begin == (1 if number == 0 else min(OVERLAP_TOKENS, sequence_tokens // 2))
        labels.update(range(label, end))
    assert labels == Counter(range(1, count))  # nothing predicts the first
    assert all(end - begin == sequence_tokens for begin, _, end in places[:-1])  # no more of them than needed


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS.filter(bool), max_size=5), LENGTHS)
def test_sequences_joined_are_the_files(texts: list[str], sequence_tokens: int) -> None:
    """What is learned is not what stands in the files, to the token, or goes on beyond their ends."""
    tokenizer = tiny_models.make_tokenizer()
    found = sequences_of(tokenizer, texts, 0, sequence_tokens)
    joined: list[list[int]] = []
    for i in range(len(found)):
        row, overlap = found[i], labels_of(found, i)
        assert row["labels"][overlap:] == row["input_ids"][overlap:]
        if not joined or joined[-1][-1] == tokenizer.eos_token_id:  # a file's first
            assert overlap == 1
            joined.append(row["input_ids"])
        else:
            assert row["input_ids"][:overlap] == joined[-1][-overlap:]
            joined[-1] = joined[-1] + row["input_ids"][overlap:]
    assert joined == [[*ids, tokenizer.eos_token_id] for ids in encode_prompts(tokenizer, texts)]
    assert [tokenizer.decode(ids[:-1]) for ids in joined] == texts


def test_the_end_of_text_is_learned_where_a_file_ends_only() -> None:
    """The model stops after 512 tokens, or in the middle of a file, or never."""
    tokenizer = tiny_models.make_tokenizer()
    eos = tokenizer.eos_token_id
    texts = ["".join(p + c for p, c in tiny_models.examples(n, seed=n)) for n in (1, 2, 5)]
    texts[1] += "val end = '<|endoftext|>'\n"  # source code that holds it is text
    found = sequences_of(tokenizer, texts, 0, 40)
    rows = [found[i] for i in range(len(found))]
    assert len(rows) > 9
    assert sum(row["labels"].count(eos) for row in rows) == 3
    assert sum(row["labels"][-1] == eos for row in rows) == 3
    assert all(eos not in row["input_ids"][:-1] for row in rows)


def test_a_tokenizer_that_begins_and_ends_texts_by_itself() -> None:
    """A file has two end-of-text tokens, or each of its sequences a beginning of its own."""
    class Tokenizer:
        eos_token_id = 2

        def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1, *map(ord, text), 2] for text in texts]}

    [ids] = encode_texts(Tokenizer(), ["a" * 20])
    assert ids.tolist() == [1, *[97] * 20, 2]
    found = sequences_of(Tokenizer(), ["a" * 20], 0, 8)
    assert [found[i]["input_ids"].count(1) for i in range(len(found))] == [1, *[0] * (len(found) - 1)]


def line_of(number: int) -> str:
    return f"    val a{number} = x + {number}\n"


@pytest.mark.parametrize(("value", "left_out"), [("9" * 50, True), ("b" * 250, True), ("9" * 39, False)])
def test_sequences_with_a_very_large_value_are_left_out(value: str, left_out: bool) -> None:
    """Hundreds of digits reach the model, or the whole file is lost for one of them."""
    tokenizer = tiny_models.make_tokenizer()
    lines = [line_of(i) for i in range(200)]
    text = "".join([*lines[:80], f"    val big = {value}\n", *lines[80:]])
    found = sequences_of(tokenizer, [text], 0, 400)
    pieces = [tokenizer.decode(found[i]["input_ids"]) for i in range(len(found))]
    assert any(value in piece for piece in pieces) is not left_out
    places = list(sequence_places(len(encode_texts(tokenizer, [text])[0]), 400))
    assert (len(found) < len(places)) is left_out
    assert pieces[0].startswith(lines[0])
    assert pieces[-1].endswith(lines[-1] + tiny_models.END_OF_TEXT)


def test_the_end_of_text_is_no_part_of_a_large_value() -> None:
    """The end of a file whose last word is long is never learned: the end-of-text token counts as a part of
    it."""
    tokenizer = tiny_models.make_tokenizer()
    text = "x" * 250 + "\n" + "".join(map(line_of, range(200))) + "y" * 195  # suspect, for its head
    found = sequences_of(tokenizer, [text], 0, 400)
    assert found[len(found) - 1]["input_ids"][-1] == tokenizer.eos_token_id
    assert "y" * 50 in tokenizer.decode(found[len(found) - 1]["input_ids"])


def test_one_file_gives_no_more_than_its_bound() -> None:
    """A table of a megabyte is most of what is learned; or always its beginning is, or files that are small
    enough lose something too."""
    tokenizer = tiny_models.make_tokenizer()
    large, small = "".join(map(line_of, range(200))), line_of(7) * 9

    def rows(tokens: int, seed: int = 0) -> tuple[list[list[int]], FileBound]:
        bound = FileBound(tokens, seed)
        found = sequences_of(tokenizer, [small, large, small], 0, 100, bound=bound)
        return [found[i]["input_ids"] for i in range(len(found))], bound

    every, unbounded = rows(0)
    of_small = len(sequences_of(tokenizer, [small], 0, 100))
    some, bound = rows(700)
    assert (bound.files, bound.left_out) == (1, len(every) - len(some))
    assert (unbounded.files, unbounded.left_out) == (0, 0)
    assert len(some) == 7 + 2 * of_small
    assert some[:of_small] == some[-of_small:] == every[:of_small]
    places = [every.index(row) for row in some[of_small:-of_small]]
    assert places == sorted(places)
    assert places != list(range(of_small, of_small + 7))  # not its beginning
    assert rows(700)[0] == some
    assert rows(700, seed=1)[0] != some
    assert len(rows(1)[0]) == 3  # one of each at least


@pytest.mark.parametrize("number", [0, 1, 5, 1000])
def test_as_many_sequences_as_are_asked_for(number: int) -> None:
    """--max_train_samples is not kept to, or all files are tokenized for a few sequences."""
    read = []

    def texts() -> list[str]:
        for i in range(3 * FILES_PER_BATCH):
            read.append(i)
            yield "".join(line_of(i + n) for n in range(4))

    tokenizer = tiny_models.make_tokenizer()
    found, read_before = sequences_of(tokenizer, texts(), number, 24), len(read)
    every = sequences_of(tokenizer, texts(), 0, 24)
    assert len(every) > 600
    assert len(found) == min(number or len(every), len(every))
    assert all(found[i] == every[i] for i in range(len(found)))  # the first of them
    if 0 < number <= 5:
        assert read_before == FILES_PER_BATCH
    assert len(sequences_of(tokenizer, [], number, 24)) == 0


def test_whole_files_are_drawn_at_random_by_the_seed() -> None:
    """Only the first repository is learned from, another sample in every run, or a file twice."""
    texts = [f"file {i}" for i in range(3 * FILES_PER_BATCH + 5)]
    files = Dataset.from_dict({"text": texts})
    drawn = {seed: list(files_in_random_order(files, seed)) for seed in (0, 1)}
    assert drawn[0] == list(files_in_random_order(files, 0))
    assert drawn[0] != drawn[1]
    assert all(sorted(found) == sorted(texts) for found in drawn.values())
    firsts = [texts.index(text) for text in islice(drawn[0], 50)]
    assert np.mean(firsts) == pytest.approx(len(texts) / 2, abs=40)  # of all the split, not of a part
