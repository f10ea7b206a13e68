"""prompts/repository_form.py: snippets and paths before a file, in the form of each family."""
import copy
from typing import Any

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from pipeline.model.tokenizers import encode_prompts
from pipeline.prompts.repository_form import (
    COMMENTED,
    FAMILIES,
    FEWEST_LINES,
    MANIFEST_ENTRY,
    Prefixes,
    RepositoryPrompt,
    Snippet,
    form_of_manifest,
    name_of_repository,
    prompt_form,
)
from pipeline.run.errors import PipelineError

SNIPPETS = [Snippet("core/Gate.kt", "class Gate {\n    fun open() = 1\n}"),
          Snippet("core/Tide.kt", "val tide = 2")]
QWEN, STARCODER = FAMILIES["Qwen2.5-Coder"], FAMILIES["StarCoder2"]


def tokenizer_with(*tokens: str) -> Any:
    """Return a copy of the tiny tokenizer with these special tokens."""
    tokenizer = copy.deepcopy(tiny_models.make_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of ids, special tokens too."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(("form", "expected"), [
    # https://github.com/QwenLM/Qwen2.5-Coder, README, "Repository Level Code Completion"
    (QWEN, "<|repo_name|>harbour\n<|file_sep|>core/Tide.kt\nval tide = 2\n"
           "<|file_sep|>core/Gate.kt\nclass Gate {\n    fun open() = 1\n}\n<|file_sep|>app/Main.kt\n"),
    # https://arxiv.org/abs/2402.19173, section 3.1: <repo_name>reponame<file_sep>filepath0\ncode0<file_sep>
    (STARCODER, "<repo_name>harbour<file_sep>core/Tide.kt\nval tide = 2\n"
                "<file_sep>core/Gate.kt\nclass Gate {\n    fun open() = 1\n}\n<file_sep>app/Main.kt\n"),
    (COMMENTED, "// core/Tide.kt\nval tide = 2\n"
                "// core/Gate.kt\nclass Gate {\n    fun open() = 1\n}\n// app/Main.kt\n")])
def test_the_published_formats(form: RepositoryPrompt, expected: str) -> None:
    """The prompt is not that of the family's training: the best snippet last, then the file."""
    tokenizer = tokenizer_with(*filter(None, (form.repository, form.file)))
    prefix = Prefixes(tokenizer, form).before("harbour", "app/Main.kt", SNIPPETS, 300)
    assert text_of(tokenizer, prefix.ids) == expected
    assert prefix.shown == SNIPPETS
    if form.file:
        assert prefix.ids.count(tokenizer.convert_tokens_to_ids(form.file)) == 3


@pytest.mark.parametrize(("tokens", "expected"), [
    (("<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"), QWEN),
    (("<repo_name>", "<file_sep>", "<fim_prefix>"), STARCODER),
    (("<repo_name>", "<file_sep>"), COMMENTED),  # as SmolLM2 has them, which was not trained with them
    (("<file_sep>",), COMMENTED), ((), COMMENTED)])
def test_the_form_is_that_of_the_vocabulary(tokens: tuple[str, ...], expected: RepositoryPrompt) -> None:
    """A model is prompted with tokens that it does not have, or without those that it knows."""
    tokenizer = tokenizer_with(*tokens)
    assert prompt_form(tokenizer) == expected
    manifest = {MANIFEST_ENTRY: expected._asdict()}
    assert form_of_manifest(manifest, tokenizer, "models/merged") == expected
    assert form_of_manifest({"adapter_manifest": manifest}, tokenizer, "models/merged") == expected


def test_a_manifest_that_says_nothing_or_nonsense() -> None:
    """A model is prompted in a form that its tokenizer has no tokens for, or with a traceback."""
    tokenizer = tiny_models.make_tokenizer()
    assert form_of_manifest(None, tokenizer, "m") is None
    assert form_of_manifest({"adapter_manifest": None}, tokenizer, "m") is None
    with pytest.raises(PipelineError, match=r"trained with the tokens <\|file_sep\|> <\|repo_name\|>"):
        form_of_manifest({MANIFEST_ENTRY: QWEN._asdict()}, tokenizer, "m")
    with pytest.raises(PipelineError, match="is not one that train"):
        form_of_manifest({MANIFEST_ENTRY: ["tokens"]}, tokenizer, "m")


def test_text_that_looks_like_a_token_stays_text() -> None:
    """A file that writes about such models ends its snippet, or begins another repository."""
    tokenizer = tokenizer_with("<repo_name>", "<file_sep>")
    evil = [Snippet("a<file_sep>.kt", "val a = \"<file_sep><repo_name>\"")]
    prefix = Prefixes(tokenizer, STARCODER).before("<repo_name>", "b<file_sep>.kt", evil, 300)
    assert prefix.ids.count(tokenizer.convert_tokens_to_ids("<file_sep>")) == 2
    assert prefix.ids.count(tokenizer.convert_tokens_to_ids("<repo_name>")) == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=6), st.integers(1, 400), st.sampled_from([COMMENTED, STARCODER]))
def test_there_is_room(lines: list[int], tokens: int, form: RepositoryPrompt) -> None:
    """A prompt is too long, or a worse snippet takes the room of a better one."""
    tokenizer = tokenizer_with("<repo_name>", "<file_sep>")
    snippets = [Snippet(f"p{i}.kt", "".join(f"    val line{j} = {i}\n" for j in range(number)))
              for i, number in enumerate(lines)]
    prefix = Prefixes(tokenizer, form).before("code", "Main.kt", snippets, tokens)
    assert len(prefix.ids) <= tokens
    for shown, snippet in zip(prefix.shown[:-1], snippets, strict=False):
        assert shown == snippet
    if prefix.shown:
        last, whole = prefix.shown[-1], snippets[len(prefix.shown) - 1]
        assert whole.text.startswith(last.text)
        assert last == whole or last.text.count("\n") + 1 >= FEWEST_LINES
        text = text_of(tokenizer, prefix.ids)
        assert text.endswith("Main.kt\n")
        assert [text.count(snippet.text) >= 1 for snippet in prefix.shown] == [True] * len(prefix.shown)


def test_what_every_text_begins_with_stands_first() -> None:
    """The token that a tokenizer puts before every text stands in the middle of the prompt, or twice."""
    tokenizer = tokenizer_with("<s>")
    number = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", number)])
    prefixes = Prefixes(tokenizer, COMMENTED)
    prefix = prefixes.before("code", "Main.kt", SNIPPETS, 200)
    [file] = encode_prompts(tokenizer, ["fun main()"])
    assert file[0] == number
    for ids in (file, file[1:]):
        prompt = prefixes.prompt(prefix, ids)
        assert prompt == [number, *prefix.ids, *file[1:]]


def test_no_room_no_pieces_and_no_path() -> None:
    """A repository without other files, or a file without a path, ends in a traceback."""
    tokenizer = tiny_models.make_tokenizer()
    prefixes = Prefixes(tokenizer, COMMENTED)
    assert prefixes.before("code", "Main.kt", SNIPPETS, 2) == ([], [])
    assert text_of(tokenizer, prefixes.before("code", "Main.kt", [], 100).ids) == "// Main.kt\n"
    assert text_of(tokenizer, prefixes.before("", None, [Snippet("", "val a = 1")], 100).ids) \
        == "\nval a = 1\n\n"


@pytest.mark.parametrize(("path", "heading"), [
    ("a/b.kt", "// a/b.kt"), ("a/b.py", "# a/b.py"), ("b.LUA", "-- b.LUA"), ("b.css", "/* b.css */"),
    ("b.html", "<!-- b.html -->"), ("Makefile", "// Makefile"), ("b.unknown", "// b.unknown")])
def test_paths_are_comments_of_the_language(path: str, heading: str) -> None:
    """A path before a snippet reads as code."""
    tokenizer = tiny_models.make_tokenizer()
    ids = Prefixes(tokenizer, COMMENTED).before("", path, [], 100).ids
    assert text_of(tokenizer, ids) == f"{heading}\n"


@pytest.mark.parametrize(("source", "name"), [
    ("https://github.com/JetBrains/kotlin.git", "JetBrains/kotlin"), ("kotlin", "kotlin"), (None, ""),
    ("../my-project/", "my-project"), ("git@example.org:team/code.git", "code"),
    ("https://example.org/code", "code")])
def test_names_of_repositories(source: str | None, name: str) -> None:
    """A prompt holds the address of a server, or a path of this machine."""
    assert name_of_repository(source) == name
