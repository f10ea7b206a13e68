"""pipeline/prompts/prompter.py: the token ids of prompts, against those composed by hand."""
from collections.abc import Sequence
from typing import Any

import infilling_runs
import pytest
import tiny_models
from evaluation_runs import make_other_tokenizer
from tokenizers import processors

from pipeline.prompts.contexts import contexts_of, first_lines
from pipeline.prompts.fim_formats import encode_beginnings, encode_within, find_format
from pipeline.prompts.prompter import (
    CHARACTERS_KEPT,
    NOWHERE,
    Place,
    Prompter,
    PromptForms,
    PromptTokens,
)
from pipeline.prompts.repository_form import COMMENTED, FAMILIES, Prefixes, Snippet

FILE = "".join(f"val a{i} = {i * 7}\n" for i in range(40))
CUT, END = FILE.index("val a20"), FILE.index("val a22")
COMPLETION = FILE[CUT:END]
SNIPPETS = (Snippet("core/Gate.kt", "class Gate {\n    fun open() = 1\n}"),
            Snippet("Tide.kt", "val tide = 2"))
PLACES = [Place(FILE[:CUT], FILE[END:], path="app/Main.kt", repository="team/app", snippets=SNIPPETS),
          Place("fun f", "", head="un() {"), Place("    ", "\n}\n", path="b.py")]
MARKS = infilling_runs.MARKS


def with_beginning() -> Any:
    """Return a tokenizer that puts a token before every text, and has FIM tokens."""
    tokenizer = infilling_runs.with_tokens("<s>", *MARKS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))])
    return tokenizer


TOKENIZERS = {"plain": tiny_models.make_tokenizer(), "other": make_other_tokenizer(),
              "fim": infilling_runs.with_tokens(*MARKS), "beginning": with_beginning()}


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of whole texts, with the tokens that the tokenizer puts before them."""
    return [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_without_more_the_prompt_is_the_text(name: str) -> None:
    """A chunk is shortened, or special tokens are added or lost."""
    tokenizer = TOKENIZERS[name]
    texts = [place.before + place.head for place in PLACES]
    prompter = Prompter(tokenizer)
    assert prompter.contexts(PLACES) == texts
    assert prompter.prompts(PLACES) == plain_ids(tokenizer, texts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_context_is_whole_lines(name: str) -> None:
    """The context is not that of `contexts_of`, or a method's signature is cut with it."""
    tokenizer = TOKENIZERS[name]
    contexts = [text + place.head
                for text, place in zip(contexts_of(tokenizer, [each.before for each in PLACES], 30), PLACES,
                                       strict=True)]
    assert 0 < len(contexts[0]) < CUT
    prompter = Prompter(tokenizer, PromptTokens(30))
    assert prompter.contexts(PLACES) == contexts
    assert prompter.prompts(PLACES) == plain_ids(tokenizer, contexts)
    prompts, completions = prompter.pairs(PLACES[:1], [COMPLETION])
    assert [*prompts[0], *completions[0]] == plain_ids(tokenizer, [contexts[0] + COMPLETION])[0]


def fim_ids(tokenizer: Any, order: str, places: list[Place]) -> list[list[int]]:
    """Return the ids of prompts in FIM form, by hand."""
    p, s, m = tokenizer.convert_tokens_to_ids(list(MARKS[:3]))
    beginning = plain_ids(tokenizer, [""])[0]
    contexts = [text + place.head for text, place in
                zip(contexts_of(tokenizer, [place.before for place in places], 30), places, strict=True)]
    prefixes = encode_beginnings(tokenizer, contexts)
    suffixes = encode_within(tokenizer, first_lines(tokenizer, [place.after for place in places], 12))
    if order == "psm":
        return [[*beginning, p, *prefix, s, *suffix, m]
                for prefix, suffix in zip(prefixes, suffixes, strict=True)]
    return [[*beginning, p, s, *suffix, m, *prefix]
            for prefix, suffix in zip(prefixes, suffixes, strict=True)]


@pytest.mark.parametrize("order", ["psm", "spm"])
@pytest.mark.parametrize("name", ["fim", "beginning"])
def test_fim_form(name: str, order: str) -> None:
    """Prefix and suffix stand in another order than the model was trained with, or with other tokens."""
    tokenizer = TOKENIZERS[name]
    prompter = Prompter(tokenizer, PromptTokens(30, 12), PromptForms(find_format(tokenizer, "", order)))
    expected = fim_ids(tokenizer, order, PLACES)
    assert prompter.prompts(PLACES) == expected
    assert prompter.stops > set(tokenizer.convert_tokens_to_ids(list(MARKS[:3])))
    prompts, completions = prompter.pairs(PLACES, [COMPLETION] * 3)
    assert prompts == expected
    assert completions == encode_within(tokenizer, [COMPLETION]) * 3
    # a model without the form is given the text before the place, and so is a set without a suffix
    plain = Prompter(tokenizer, PromptTokens(30)).prompts(PLACES)
    assert Prompter(tokenizer, PromptTokens(30, 12)).prompts(PLACES) == plain
    fim = PromptForms(find_format(tokenizer, ""))
    assert Prompter(tokenizer, PromptTokens(30), fim).prompts(PLACES) == plain
    assert not Prompter(tokenizer, PromptTokens(30), fim).stops


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("order", [None, "psm", "spm"])
def test_repository_context_comes_first(name: str, order: str | None) -> None:
    """Snippets stand between the FIM tokens, before the token that every text begins with, or after the
    path of their file."""
    tokenizer = TOKENIZERS[name]
    fim = order and find_format(tokenizer, "", order)
    if order and not fim:
        pytest.skip("no FIM tokens")
    tokens = PromptTokens(30, 12 if fim else 0, 120)
    prompter = Prompter(tokenizer, tokens, PromptForms(fim))
    prefixes = Prefixes(tokenizer, COMMENTED)
    without = Prompter(tokenizer, tokens._replace(repository=0), PromptForms(fim)).prompts(PLACES)
    beginning = plain_ids(tokenizer, [""])[0]
    for place, ids, alone in zip(PLACES, prompter.prompts(PLACES), without, strict=True):
        prefix = prefixes.before(place.repository, place.path, place.snippets, 120)
        assert prompter.prefix(place) == prefix
        assert ids == [*beginning, *prefix.ids, *alone[len(beginning):]]
    text = tokenizer.decode(prompter.prefix(PLACES[0]).ids)
    assert text == ("// Tide.kt\nval tide = 2\n// core/Gate.kt\nclass Gate {\n    fun open() = 1\n}\n"
                    "// app/Main.kt\n")
    prompts, completions = prompter.pairs(PLACES, [COMPLETION] * 3)
    without = Prompter(tokenizer, tokens._replace(repository=0), PromptForms(fim))
    alone, same = without.pairs(PLACES, [COMPLETION] * 3)
    assert completions == same
    assert prompts == [[*beginning, *prompter.prefix(place).ids, *ids[len(beginning):]]
                       for place, ids in zip(PLACES, alone, strict=True)]


def test_a_tokenizer_without_the_forms_tokens_gets_its_own_form() -> None:
    """A model is given tokens of another family, or the benchmark ends in a KeyError."""
    tokens, form = PromptTokens(repository=60), PromptForms(repository=FAMILIES["StarCoder2"])
    tokenizer = TOKENIZERS["plain"]
    assert Prompter(tokenizer, tokens, form).prompts(PLACES) == Prompter(tokenizer, tokens).prompts(PLACES)


def test_an_empty_prompt_is_the_end_of_text() -> None:
    """A model is called without any token."""
    tokenizer = TOKENIZERS["plain"]
    assert Prompter(tokenizer).prompts([NOWHERE]) == [[tokenizer.eos_token_id]]
    assert Prompter(tokenizer).pairs([NOWHERE], ["a"])[0] == [[tokenizer.eos_token_id]]


def test_of_a_long_suffix_the_beginning_is_read() -> None:
    """A file of megabytes is tokenized for some lines of it."""
    tokenizer = TOKENIZERS["fim"]
    forms = PromptForms(find_format(tokenizer, ""))
    long = Place(FILE[:CUT], "x\n" * 10**6)
    short = long._replace(after=long.after[:CHARACTERS_KEPT * 12])
    prompts = Prompter(tokenizer, PromptTokens(30, 12), forms).prompts([long, short])
    assert prompts[0] == prompts[1]
