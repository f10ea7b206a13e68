"""pipeline/data/encoded_examples.py: what is learned from, and on which of its tokens."""
import numpy as np
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.encoded_examples import EncodedExamples, encode_examples
from pipeline.model.tokenizers import encode_prompts


def test_loss_is_on_the_completion_and_its_end_only() -> None:
    """The model is trained to repeat prompts, or never learns where a completion ends."""
    tokenizer = tiny_models.make_tokenizer()
    pairs = tiny_models.examples(9, seed=3)
    found = encode_examples(tokenizer, [p for p, _ in pairs], [c for _, c in pairs], 1024)
    assert len(found) == 9
    for i, (prompt, completion) in enumerate(pairs):
        row = found[i]
        start, whole = encode_prompts(tokenizer, [prompt, prompt + completion])
        begun = row["labels"].count(-100)
        assert row["input_ids"] == [*whole, tokenizer.eos_token_id]
        assert row["labels"] == [-100] * begun + row["input_ids"][begun:]
        assert row["input_ids"][:begun] == start[:begun]
        assert tokenizer.decode(whole[begun:]).endswith(completion)
        assert begun == len(start) or start[begun] != whole[begun]  # no more labels than it must have
        assert tokenizer.decode(row["input_ids"][:-1]) == prompt + completion


def test_a_token_across_the_cut_is_a_label() -> None:
    """The model is trained on tokens that no running text has, or on a prompt that tells how its completion
    begins."""
    tokenizer, text = tiny_models.make_tokenizer(), "fun f() {\n    return x\n}"
    whole, across = tokenizer(text)["input_ids"], 0
    for cut in range(1, len(text)):
        row = encode_examples(tokenizer, [text[:cut]], [text[cut:]], 1024)[0]
        prompt = row["labels"].count(-100)
        assert row["input_ids"] == [*whole, tokenizer.eos_token_id]
        assert text.startswith(tokenizer.decode(whole[:prompt]))
        assert len(tokenizer.decode(whole[:prompt])) <= cut
        across += len(tokenizer.decode(whole[:prompt])) < cut
    assert across  # such cuts were among them


def test_text_that_looks_like_a_special_token_stays_text() -> None:
    """Source code that holds `<|endoftext|>` ends the example in its middle."""
    tokenizer = tiny_models.make_tokenizer()
    found = encode_examples(tokenizer, ["a = '<|endoftext|>'"], ["b = '<|endoftext|>'"], 1024)[0]
    assert found["input_ids"].count(tokenizer.eos_token_id) == 1
    assert found["input_ids"][-1] == tokenizer.eos_token_id


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.integers(3, 60))
def test_too_long_examples_keep_what_is_next_to_the_cut(prompt: int, completion: int,
                                                        max_length: int) -> None:
    """A long example loses the end of its prompt, or its whole completion, or exceeds --max_length; or the
    model learns to end where a completion was cut."""
    tokenizer = tiny_models.make_tokenizer()
    prompt_text, completion_text = "p" + "a;" * prompt, "c" + "b(" * completion
    row = encode_examples(tokenizer, [prompt_text], [completion_text], max_length)[0]
    start, end = tokenizer(prompt_text)["input_ids"], tokenizer(completion_text)["input_ids"]
    length = row["labels"].count(-100)
    left = end if len(end) <= max_length - 2 else end[:max_length - 2]
    ending = [tokenizer.eos_token_id] * (left is end)
    assert 2 <= len(row["input_ids"]) <= max_length
    assert row["input_ids"][:length] == start[-length:]
    assert row["input_ids"][length:] == left + ending
    assert len(row["input_ids"]) == min(max_length, len(start) + len(left) + len(ending))


def rows_of(examples: EncodedExamples) -> list[dict[str, list[int]]]:
    """Return all examples as the Trainer gets them."""
    return [examples[i] for i in range(len(examples))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=8), st.integers(8, 40))
def test_the_end_of_text_is_behind_what_ends_something(ends: list[bool], max_length: int) -> None:
    """The model stops behind 100 tokens although the code goes on, or never."""
    tokenizer = tiny_models.make_tokenizer()
    pairs = tiny_models.examples(len(ends), seed=4)
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    found = rows_of(encode_examples(tokenizer, prompts, completions, max_length, ends))
    always = rows_of(encode_examples(tokenizer, prompts, completions, max_length))
    for row, usual, end in zip(found, always, ends, strict=True):
        whole = usual["labels"][-1] == tokenizer.eos_token_id  # not cut
        assert (row["labels"][-1] == tokenizer.eos_token_id) is (end and whole)
        assert len(row["input_ids"]) == len(row["labels"]) <= max_length
        labels = [label for label in row["labels"] if label != -100]
        ending = [tokenizer.eos_token_id] * (whole and not end)
        assert labels + ending == [x for x in usual["labels"] if x != -100]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=6), st.lists(st.integers(1, 9), max_size=6))
def test_examples_behind_others_stay_what_they_are(first: list[int], second: list[int]) -> None:
    """With a --replay_dataset, tokens of one example are taken for those of another."""
    def examples(lengths: list[int], begin: int) -> EncodedExamples:
        return EncodedExamples.of_rows([np.arange(begin, begin + n, dtype=np.int32) for n in lengths],
                                       [n // 2 for n in lengths])

    joined = examples(first, 100).followed_by(examples(second, 500))
    assert rows_of(joined) == rows_of(examples(first, 100)) + rows_of(examples(second, 500))
    assert joined.lengths.tolist() == first + second
    assert joined.ids.dtype == np.int32  # 4 bytes a token
    for row, n in zip(rows_of(joined), first + second, strict=True):
        assert row["labels"] == [-100] * (n // 2) + row["input_ids"][n // 2:]
