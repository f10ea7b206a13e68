"""pipeline/model/tokenizers.py: the folders that hold one, and the tokens of a prompt."""
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiny_models
from evaluation_runs import make_other_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from pipeline.model.tokenizers import (
    check_local_model,
    decode_behind,
    encode_pairs,
    encode_prompts,
    load_tokenizer,
    tokenizer_identity,
)
from pipeline.run.errors import PipelineError


def test_check_local_model(tmp_path: Path) -> None:
    """A wrong folder gives the traceback of a library."""
    for name, message in ((str(tmp_path / "nothing"), "no such folder"),
                          (str(tmp_path), "holds neither config.json")):
        with pytest.raises(PipelineError, match=message):
            check_local_model(name)
    (tmp_path / "adapter_config.json").write_text("{}")
    check_local_model(str(tmp_path))
    check_local_model("owner/name-of-a-hub-model")


class WordTokenizer:
    """A tokenizer that puts token 1 before a text and, with `end`, token 2 behind it."""
    eos_token_id = 2

    def __init__(self, end: bool):
        self.end = [2] if end else []

    def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
        assert options == {"return_attention_mask": False, "split_special_tokens": True}
        return {"input_ids": [[1, *map(ord, text), *self.end] for text in texts]}


@pytest.mark.parametrize("end", [True, False])
def test_encode_prompts_leaves_the_end_open(end: bool) -> None:
    """The model sees an end-of-text token between prompt and completion."""
    assert encode_prompts(WordTokenizer(end), ["a", ""]) == [[1, 97], [1]]
    assert encode_prompts(WordTokenizer(end), []) == []


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer",
                                  "CodeGenTokenizer"])
def test_identity_survives_saving_and_use(kind: str, tmp_path: Path) -> None:
    """A merged model counts in other tokens than its base, by a hash that saving or a padded batch changes:
    scores are left out, and predictions made again."""
    folder, found = tmp_path / "0", []
    tiny_models.save_model(folder, "gpt2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": kind}))
    for number in range(1, 3):
        tokenizer = load_tokenizer(str(folder))
        found.append(tokenizer_identity(tokenizer))
        tokenizer(["a b c", "a"], padding=True, truncation=True, max_length=2)
        found.append(tokenizer_identity(tokenizer))
        folder = tmp_path / str(number)
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text((tmp_path / "0" / "config.json").read_text())
    assert len(found) == 4
    assert len(set(found)) == 1


def test_identity_tells_what_encodes_otherwise() -> None:
    """Two models that count in different tokens are compared by the token; or predictions of another
    tokenizer are taken for those of this one."""
    tokenizer = tiny_models.make_tokenizer()
    end, added = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    end.eos_token = "!"  # noqa: S105
    added.add_tokens(["val "])
    found = [tokenizer_identity(t) for t in (tokenizer, make_other_tokenizer(), end, added)]
    assert len(set(found)) == 4
    assert tokenizer_identity(tiny_models.make_tokenizer()) == found[0]


class SlowTokenizer:
    """A tokenizer without a fast form: a vocabulary."""
    is_fast, eos_token_id = False, 0

    def __init__(self, words: list[str]):
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def test_identity_of_a_tokenizer_without_a_fast_form() -> None:
    """A model with an old tokenizer cannot be scored, or passes for one with another vocabulary."""
    one, same, other = (tokenizer_identity(SlowTokenizer(words)) for words in ("abc", "abc", "acb"))
    assert one == same != other


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_a_model_without_a_tokenizer_is_told(architecture: str, tmp_path: Path) -> None:
    """The library makes up an empty tokenizer, every prompt is nothing, and the scores of that are
    believed."""
    tiny_models.make_model(architecture).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match="holds no tokenizer; save one beside it"):
        load_tokenizer(str(tmp_path))


CODE = "".join(prompt + completion for prompt, completion in tiny_models.examples(60, seed=9))


def sentencepiece_tokenizer(folder: Path, begins: bool) -> Any:
    """Return a tokenizer as Llama's: sentencepiece's BPE, bytes for what its pieces do not have."""
    (folder / "text").write_text(CODE)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=340, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, bos_id=1, eos_id=2, unk_id=0, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False)
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>",
                "unk_token": "<unk>", "add_bos_token": begins}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return LlamaTokenizer.from_pretrained(folder)


def wordpiece_tokenizer(folder: Path, begins: bool) -> Any:
    """Return a tokenizer as BERT's: words and their ends, special tokens before and behind a text."""
    rules = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    rules.pre_tokenizer, rules.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    rules.train_from_iterator([CODE], trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    if begins:
        rules.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="[UNK]", cls_token="[CLS]",  # noqa: S106
                                   eos_token="[SEP]")  # noqa: S106


def bytes_tokenizer(folder: Path, begins: bool) -> Any:
    """Return a byte-level BPE as GPT-2's."""
    tokenizer = copy.deepcopy(tiny_models.make_tokenizer())
    if begins:
        end, number = tokenizer.eos_token, tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            f"{end} $A", special_tokens=[(end, number)])
    return tokenizer


@pytest.fixture(scope="module", params=[(make, begins) for begins in (True, False) for make in (
    bytes_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer)],
    ids=lambda param: f"{param[0].__name__}-{'begins' if param[1] else 'plain'}")
def any_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each kind of tokenizer, with a token that begins a text and without."""
    make, begins = request.param
    return make(tmp_path_factory.mktemp("tokenizer"), begins)


TEXTS = st.builds(lambda begin, length, odd: CODE[begin:begin + length] + odd + CODE[begin:begin + 9],
                  st.integers(0, 500), st.integers(0, 80),
                  st.sampled_from(["", "é☃", "  \t", "\r\n\n", "</s>"]))


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, share=st.floats(0, 1))
def test_the_tokens_of_a_pair_are_those_of_its_text(any_tokenizer: Any, text: str, share: float) -> None:
    """Training, losses and prompts have tokens that no running text has: sentencepiece's mark of a first word
    in the middle of a line costs the base model 12 nats, and its loss is called a gain."""
    cut = round(share * len(text))
    (prompt,), (completion,) = encode_pairs(any_tokenizer, [text[:cut]], [text[cut:]])
    assert prompt + completion == encode_prompts(any_tokenizer, [text])[0]
    alone = encode_prompts(any_tokenizer, [text[:cut]])[0]
    assert prompt == alone[:len(prompt)]
    assert len(prompt) == len(alone) or completion[:1] != alone[len(prompt):len(prompt) + 1]


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, share=st.floats(0, 1))
def test_what_follows_a_prompt_is_decoded_behind_it(any_tokenizer: Any, text: str, share: float) -> None:
    """The first word of every prediction loses its space, and with it every exact match."""
    ids = encode_prompts(any_tokenizer, [text])[0]
    cut = round(share * len(ids))
    whole, begin = (any_tokenizer.decode(part, skip_special_tokens=True) for part in (ids, ids[:cut]))
    if not begin.endswith("\ufffd"):  # between two characters, where prompts end
        assert begin + decode_behind(any_tokenizer, ids[:cut], ids[cut:]) == whole


def test_a_space_before_the_first_word_stays(tmp_path: Path) -> None:
    """A prediction that begins with ` x` is scored as `x`."""
    tokenizer = sentencepiece_tokenizer(tmp_path, begins=True)
    prompt, whole = (encode_prompts(tokenizer, [text])[0] for text in ("return", "return x"))
    assert whole[:len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt):]) == "x"  # what it gives by itself
    assert decode_behind(tokenizer, prompt, whole[len(prompt):]) == " x"
