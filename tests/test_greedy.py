"""pipeline/decoding/greedy.py: greedy decoding in batches, what ends a row, and how batches are cut."""
from collections import Counter

import pytest
import tiny_models
import torch
from evaluation_runs import block_task, free_task, prompts, written_alone
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decoding import greedy
from pipeline.decoding.greedy import Continuation, generate_batch, plan_batches, tokens_with
from pipeline.methods.block_end import block_end
from pipeline.run.errors import PipelineError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("padding", [10**6, 0])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_decoding_in_batches_is_what_generate_does(architecture: str, padding: int,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding, the cache or rows that left the batch change what a model writes; or prompt tokens are judged
    as its own."""
    monkeypatch.setattr(greedy, "PREFILL_PADDING", padding)  # all prompts at once; or those of one length
    model, tokenizer, budget = tiny_models.make_model(architecture), tiny_models.make_tokenizer(), 24
    rows = prompts(8)
    assert len({len(row) for row in rows}) > 2
    with torch.inference_mode():
        free = [written_alone(model, row, budget) for row in rows]
        # as real models end at different steps: a token that some rows write, and others do not, is made an
        # end token as well
        counts = Counter(token for found in free for token in set(found[4:]) - set(found[:4]))
        extra = next(token for token, count in counts.items() if count < len(rows))
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, extra]
        expected = [written_alone(model, row, budget) for row in rows]
        sizes = []
        handle = model.register_forward_pre_hook(
            lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
        batched = generate_batch(model, tokenizer, rows, free_task(budget))
        handle.remove()
        single = [generate_batch(model, tokenizer, [row], free_task(budget))[0] for row in rows]
    assert batched == single
    for found, tokens in zip(batched, expected, strict=True):
        ended = bool(tokens) and tokens[-1] in (tokenizer.eos_token_id, extra)
        tokens = tokens[:-1] if ended else tokens
        assert found == {"text": tokenizer.decode(tokens, skip_special_tokens=True), "tokens": len(tokens),
                         "ended": ended}
    lengths = {len(tokens) for tokens in expected}
    assert len(lengths) > 1
    parts = sorted(Counter(map(len, rows)).items(), reverse=True) if padding == 0 else [(0, len(rows))]
    # the prompts, in parts of like length; then those that have not ended
    not_ended = [sum(len(tokens) > step for tokens in expected) for step in range(1, max(lengths))]
    assert sizes == [count for _, count in parts] + not_ended


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=40))
def test_the_stop_rule_sees_the_whole_text_at_every_token(tokens: list[int]) -> None:
    """A character of several tokens, or bytes that are none, shift the text that the stop rule sees: a method
    ends elsewhere."""
    tokenizer, seen = tiny_models.make_tokenizer(), []
    written = Continuation(tokenizer, free_task(100, lambda text: seen.append(text)), {0}, [])
    for token in [*tokens, *tokenizer("é ☃ 𝄞\n    x")["input_ids"]]:
        assert not written.add(token)
    assert seen == [tokenizer.decode(written.tokens[:n + 1], skip_special_tokens=True)
                    for n in range(len(written.tokens))]
    assert written.result()["text"] == seen[-1]
    number = len(written.tokens)
    assert written.add(0)
    # the end token is not counted
    assert written.result() == {"text": seen[-1], "tokens": number, "ended": True}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 300), st.sampled_from(["{", "}", '"', '"""', "${", "//", "☃}", "é"])
                          ), max_size=40))
def test_a_block_ends_with_the_token_that_closes_it(parts: list[int | str]) -> None:
    """A method runs on after its brace, because the token that closes it holds more than that, or a part of
    a character; or it ends before."""
    tokenizer = tiny_models.make_tokenizer()
    tokens = [token for part in parts
              for token in ([part] if isinstance(part, int) else tokenizer(part)["input_ids"])]
    written = Continuation(tokenizer, block_task(100), {0}, [])
    for number, token in enumerate(tokens, start=1):
        over = written.add(token)
        text = tokenizer.decode(tokens[:number], skip_special_tokens=True)
        assert over == (block_end(text.rstrip("\ufffd")) is not None)
        if over:
            assert written.result() == {"text": text[:block_end(text)], "tokens": number, "ended": True}
            return
    assert not written.ended


def test_tokens_that_hold_a_brace() -> None:
    """The token that closes a method is passed over, and the method goes on to its budget."""
    tokenizer = tiny_models.make_tokenizer()
    found = tokens_with(tokenizer, "}")
    assert found == {number for number in range(len(tokenizer)) if "}" in tokenizer.decode([number])}
    assert found
    bytes_too = tiny_models.make_tokenizer.__wrapped__()
    bytes_too.get_vocab = lambda: {"<0x7D>": 3, "▁}": 4, "a": 5}
    assert tokens_with(bytes_too, "}") == {3, 4}


def test_a_prompt_longer_than_the_context_loses_its_beginning() -> None:
    """A long prompt breaks the run, or is cut at its end, and the model continues the middle of a
    function."""
    model, tokenizer, (row, *_) = tiny_models.make_model("gpt2"), tiny_models.make_tokenizer(), prompts(1)
    long = (row * (2 * tiny_models.CONTEXT // len(row)))
    found, expected = (generate_batch(model, tokenizer, [prompt], free_task(8))
                       for prompt in (long, long[-tiny_models.CONTEXT + 8:]))
    assert found == expected
    with pytest.raises(PipelineError, match="leaves no room for a prompt"):
        generate_batch(model, tokenizer, [row], free_task(tiny_models.CONTEXT))


def test_a_stop_rule_ends_its_row_alone() -> None:
    """The end of one method cuts the predictions beside it, or the text after the end is kept."""
    model, tokenizer, rows = tiny_models.make_model("llama"), tiny_models.make_tokenizer(), prompts()
    with torch.inference_mode():
        free = generate_batch(model, tokenizer, rows, free_task(20))
        rule = free_task(20, lambda text: 5 if text.startswith(free[0]["text"][:9]) else None)
        stopped = generate_batch(model, tokenizer, rows, rule)
    assert stopped[0]["text"] == free[0]["text"][:5]
    assert stopped[0]["ended"]
    assert stopped[0]["tokens"] < 20
    others = [i for i in range(len(rows)) if not free[i]["text"].startswith(free[0]["text"][:9])]
    assert others
    assert [stopped[i] for i in others] == [free[i] for i in others]


def test_batches_hold_every_example_once_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are predicted twice or never, a batch is too large for the memory, or another run cuts other
    batches."""
    lengths = [5, 1, 9, 5, 2, 7, 7]
    assert plan_batches(lengths, 3, 10) == [[2, 5, 6], [0, 3, 4], [1]]
    monkeypatch.setattr(greedy, "BATCH_TOKENS", 34)
    assert plan_batches(lengths, 3, 10) == [[2], [5, 6], [0, 3], [4, 1]]
    assert plan_batches(lengths, 3, 100) == [[i] for i in (2, 5, 6, 0, 3, 4, 1)]
