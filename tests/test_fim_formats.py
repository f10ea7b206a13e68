"""prompts/fim_formats.py: the tokens and orders of model families, written out as they were published."""
import copy
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models

from pipeline.prompts.fim_formats import (
    FAMILIES,
    MARK,
    beginning_of,
    encode_beginnings,
    encode_within,
    find_format,
    format_of_manifest,
    missing_tokens,
)
from pipeline.run.errors import PipelineError

PREFIX, SUFFIX, MIDDLE = "ab", "\nc", " d"
BARS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
UNDERSCORES = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]


def byte_level(specials: list[str], bos: str | None = None, eos: str = "<|endoftext|>") -> Any:
    """Return a byte-level tokenizer, one token a byte, with these special tokens; `bos` begins each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # as the others here
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = [eos, *([bos] if bos else []), *specials]
    backend.add_special_tokens(names)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)


def sentencepiece_like(specials: list[str]) -> Any:
    """Return a tokenizer that puts a space before every text, as Llama's and Mistral's do."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    letters = ["<unk>", "<s>", "</s>", "\u2581", "\n", MARK, *"abcdxyz}"]
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[],
                                   unk_token=special["unk_token"]))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"),
                                               normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<s>", "</s>", *specials])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


LLAMA = ["\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>"]
DEEPSEEK = ["<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581end\uff5c>"]
HOLE, BEGIN, END = DEEPSEEK
DEEPSEEK_BOS, DEEPSEEK_EOS = (f"<\uff5c{word}\u2581of\u2581sentence\uff5c>" for word in ("begin", "end"))
QWEN = [*BARS, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
# What stands for prefix, suffix and middle in the tokenizers above (\u0120 a space, \u010a a line end).
A, C, D = ["a", "b"], ["\u010a", "c"], ["\u0120", "d"]
LLAMA_A, LLAMA_C, LLAMA_D = ["\u2581", "a", "b"], ["\n", "c"], ["\u2581", "d"]

# (family, its tokenizer, part of the model's name, order, the published sequence, its source)
PUBLISHED = [
    # README of QwenLM/Qwen2.5-Coder and arXiv 2409.12186, section 3.1:
    # <|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}<|endoftext|>
    ("Qwen2.5-Coder", lambda: byte_level(QWEN), "", None,
     ["<|fim_prefix|>", *A, "<|fim_suffix|>", *C, "<|fim_middle|>", *D, "<|endoftext|>"]),
    # bigcode-project/Megatron-LM, megatron/data/gpt_dataset.py, permute(): PSM is [prefix_tok, prefix,
    # suffix_tok, suffix, middle_tok, middle], SPM [prefix_tok, suffix_tok, suffix, middle_tok, prefix,
    # middle]
    ("StarCoder", lambda: byte_level([*UNDERSCORES, "<fim_pad>", "<repo_name>", "<file_sep>"]), "", "psm",
     ["<fim_prefix>", *A, "<fim_suffix>", *C, "<fim_middle>", *D, "<|endoftext|>"]),
    ("StarCoder", lambda: byte_level([*UNDERSCORES, "<fim_pad>", "<repo_name>", "<file_sep>"]), "", "spm",
     ["<fim_prefix>", "<fim_suffix>", *C, "<fim_middle>", *A, *D, "<|endoftext|>"]),
    # model card of bigcode/santacoder: <fim-prefix>...<fim-suffix>...<fim-middle>
    ("SantaCoder", lambda: byte_level(["<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<fim-pad>"]), "",
     None, ["<fim-prefix>", *A, "<fim-suffix>", *C, "<fim-middle>", *D, "<|endoftext|>"]),
    # facebookresearch/codellama, llama/generation.py, infilling_prompt_tokens(): [bos, PRE, prefix, SUF,
    # suffix, MID], or suffix first [bos, PRE, SUF, suffix, MID, prefix]; the suffix without the implicit
    # space (encode_infilling), <EOT> after the middle
    ("Code Llama", lambda: sentencepiece_like(LLAMA), "", "psm",
     ["<s>", "\u2581<PRE>", *LLAMA_A, "\u2581<SUF>", *LLAMA_C, "\u2581<MID>", *LLAMA_D, "\u2581<EOT>"]),
    ("Code Llama", lambda: sentencepiece_like(LLAMA), "", "spm",
     ["<s>", "\u2581<PRE>", "\u2581<SUF>", *LLAMA_C, "\u2581<MID>", *LLAMA_A, *LLAMA_D, "\u2581<EOT>"]),
    # mistralai/mistral-common, InstructTokenizerV2.encode_fim(): [BOS, SUFFIX, suffix, PREFIX, prefix], the
    # suffix without the implicit space
    ("Codestral", lambda: sentencepiece_like(["[PREFIX]", "[SUFFIX]"]), "", None,
     ["<s>", "[SUFFIX]", *LLAMA_C, "[PREFIX]", *LLAMA_A, *LLAMA_D, "</s>"]),
    # README of deepseek-ai/DeepSeek-Coder and arXiv 2401.14196, section 3.1
    ("DeepSeek-Coder", lambda: byte_level(DEEPSEEK, bos=DEEPSEEK_BOS, eos=DEEPSEEK_EOS), "", None,
     [DEEPSEEK_BOS, BEGIN, *A, HOLE, *C, END, *D, DEEPSEEK_EOS]),
    # ai.google.dev/gemma/docs/codegemma/prompt-structure
    ("CodeGemma", lambda: byte_level([*BARS, "<|file_separator|>"], bos="<bos>", eos="<eos>"), "", None,
     ["<bos>", "<|fim_prefix|>", *A, "<|fim_suffix|>", *C, "<|fim_middle|>", *D, "<eos>"]),
    # www.ibm.com/granite/docs/use-cases/prompt-engineering
    ("Granite", lambda: byte_level(BARS), "", None,
     ["<|fim_prefix|>", *A, "<|fim_suffix|>", *C, "<|fim_middle|>", *D, "<|endoftext|>"]),
    # model card of JetBrains/Mellum-4b-base: <fim_suffix>{suffix}<fim_prefix>{prefix}<fim_middle>
    ("Mellum", lambda: byte_level([*UNDERSCORES, "<fim_pad>", "<filename>"]), "JetBrains/Mellum-4b-base",
     None, ["<fim_suffix>", *C, "<fim_prefix>", *A, "<fim_middle>", *D, "<|endoftext|>"]),
]


def sequence(tokenizer: Any, name: str = "", order: str | None = None,
             tokens: list[str] | None = None) -> list[str]:
    """Return the tokens of the example above, as a model of that vocabulary is trained on them."""
    found = find_format(tokenizer, name, order, tokens)
    [prefix], [suffix, middle] = encode_beginnings(tokenizer, [PREFIX]), encode_within(tokenizer,
                                                                                      [SUFFIX, MIDDLE])
    return tokenizer.convert_ids_to_tokens(found.sequence(prefix, suffix, middle))


@pytest.mark.parametrize(("family", "make", "name", "order", "expected"), PUBLISHED,
                         ids=[f"{row[0]}-{row[3]}" for row in PUBLISHED])
def test_sequences_are_those_that_the_families_published(family: str, make: Any, name: str, order: str | None,
                                                         expected: list[str]) -> None:
    """A model is prompted, or trained, in a format that it does not know, and answers with noise."""
    tokenizer = make()
    assert find_format(tokenizer, name, order).family == family
    assert sequence(tokenizer, name, order) == expected


def test_every_family_has_an_example() -> None:
    """A family is added whose format nobody wrote out."""
    assert {family.name for family in FAMILIES} == {row[0] for row in PUBLISHED}
    assert all(family.source and family.order in family.layouts for family in FAMILIES)


def test_a_prompt_is_the_sequence_up_to_the_middle() -> None:
    """The benchmark's prompts are not those of training."""
    for _, make, name, order, _ in PUBLISHED:
        found = find_format(make(), name, order)
        whole, prompt = found.sequence([5, 6], [7], [8, 9]), found.prompt([5, 6], [7])
        assert whole == [*prompt, 8, 9, found.end]
        assert found.added_tokens() == len(whole) - 5
        assert {*found.numbers, found.end} <= found.stops


def test_text_that_looks_like_a_mark_stays_text() -> None:
    """Source code that holds <|fim_middle|> splits a sequence where nothing is to be split."""
    tokenizer = byte_level(QWEN)
    [ids] = encode_within(tokenizer, ["val a = \"<|fim_middle|>\""])
    assert not set(ids) & find_format(tokenizer, "").markers()
    assert tokenizer.decode(ids) == "val a = \"<|fim_middle|>\""


@pytest.mark.parametrize("text", ["", " ", "\n    x", "x", "  x", "}", "\n"])
def test_what_stands_within_a_text_has_no_space_of_its_own(text: str) -> None:
    """With sentencepiece, the suffix begins with a space that is not there; so does the middle."""
    for tokenizer in (sentencepiece_like(LLAMA), byte_level(QWEN), tiny_models.make_tokenizer()):
        [ids] = encode_within(tokenizer, [text])
        [before] = encode_beginnings(tokenizer, ["ab"])
        assert tokenizer.decode([*before, *ids]).lstrip(" ") == "ab" + text
    assert encode_within(tokenizer, []) == []


def test_the_beginning_of_a_text_is_found() -> None:
    """A sequence begins without the token that every text of the model begins with, or with its end."""
    assert beginning_of(byte_level(QWEN)) == ()
    tokenizer = sentencepiece_like(LLAMA)
    assert beginning_of(tokenizer) == (tokenizer.bos_token_id,)


def test_tokens_by_hand() -> None:
    """A model without FIM tokens cannot be trained with FIM, or is with tokens of another meaning."""
    tokenizer = byte_level(["<a>", "<b>", "<c>"])
    assert find_format(tokenizer, "") is None
    found = find_format(tokenizer, "", None, ["<a>", "<b>", "<c>"])
    assert (found.family, found.order, found.by_hand) == ("by hand", "psm", True)
    assert sequence(tokenizer, "", None, ["<a>", "<b>", "<c>"]) == \
        ["<a>", *A, "<b>", *C, "<c>", *D, "<|endoftext|>"]
    assert sequence(tokenizer, "", "spm", ["<a>", "<b>", "<c>"]) == \
        ["<b>", *C, "<a>", *A, "<c>", *D, "<|endoftext|>"]
    known = find_format(byte_level(UNDERSCORES), "", "spm", UNDERSCORES)  # a Mellum of another name
    assert (known.family, known.by_hand) == ("StarCoder", False)
    assert known.layout == find_format(byte_level(UNDERSCORES), "my-mellum").layout


@pytest.mark.parametrize(("tokens", "said"), [
    (["<a>", "<b>", "<d>"], "<d> is not in the vocabulary of m; its special tokens, of which some may have "
                            "no use, are <a>, <b>, <c>"),
    (["<a>", "<b>", "<a>"], "need three different tokens"),
    (["<a>", "<b>", "<|endoftext|>"], "<|endoftext|> is the end-of-text token of m"),
])
def test_tokens_that_cannot_be_used(tokens: list[str], said: str) -> None:
    """A run of hours trains with a token that ends texts, or fails with a KeyError."""
    with pytest.raises(PipelineError) as error:
        find_format(byte_level(["<a>", "<b>", "<c>"]), "m", None, tokens)
    assert said in str(error.value)


@pytest.mark.parametrize(("specials", "said"), [
    ([], "it has none of the families that are known (Code Llama, DeepSeek-Coder"),
    (["<fim_prefix>", "<fim_suffix>"], "it lacks <fim_middle> of StarCoder's"),
])
def test_the_tokens_that_are_missing_are_named(specials: list[str], said: str) -> None:
    """The message says that something is missing, but not what, nor what to do."""
    error = str(missing_tokens(byte_level(specials), "phi"))
    assert said in error
    assert "--fim_tokens PREFIX SUFFIX MIDDLE" in error
    assert "\n" not in error


def test_an_order_without_its_token() -> None:
    """A Codestral without [MIDDLE] is trained on sequences with its prefix token in place of the middle's."""
    with pytest.raises(PipelineError, match=r"--fim_order psm: m has no token \[MIDDLE\]"):
        find_format(sentencepiece_like(["[PREFIX]", "[SUFFIX]"]), "m", "psm")


def test_a_manifest_gives_the_format_back() -> None:
    """The benchmark asks a model in another format than the one that it was trained in."""
    cases = [(make(), name, order, None) for _, make, name, order, _ in PUBLISHED]
    cases += [(byte_level(["<a>", "<b>", "<c>"]), "m", order, ["<a>", "<b>", "<c>"])
              for order in ("psm", "spm")]
    cases += [(byte_level(UNDERSCORES), "m", "spm", UNDERSCORES)]
    for tokenizer, name, order, tokens in cases:
        found = find_format(tokenizer, name, order, tokens)
        manifest = {"infilling": copy.deepcopy(found.described())}
        # the merged model may lie in a folder of any name
        back = format_of_manifest({"adapter_manifest": manifest}, tokenizer, "models/merged")
        assert (back.layout, back.numbers, back.end) == (found.layout, found.numbers, found.end)
        assert format_of_manifest(manifest, tokenizer, name).layout == found.layout
    for damaged in (None, {}, {"infilling": 1}, {"infilling": {"order": "psm"}},
                    {"infilling": {"order": "psm", "layout": ["x"], "tokens": ["<a>"], "by_hand": True}}):
        assert format_of_manifest(damaged, byte_level(["<a>", "<b>", "<c>"]), "m") is None


def test_special_tokens_need_no_added_entries() -> None:
    """A tokenizer of another kind, without a list of added tokens, ends in a traceback."""
    none = dict.fromkeys(("eos_token", "bos_token", "pad_token", "unk_token"))
    plain = SimpleNamespace(get_vocab=lambda: {"a": 1}, added_tokens_decoder={}, **none)
    with pytest.raises(PipelineError, match="name entries of its vocabulary that occur in no text"):
        find_format(plain, "m", None, ["a", "b", "c"])
