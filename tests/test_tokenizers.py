"""pipeline/tokenizers.py: the folders that hold one, and the tokens of a prompt."""
import copy
import json
from pathlib import Path

import pytest
import tiny_models
from evaluation_runs import make_other_tokenizer

from pipeline.errors import PipelineError
from pipeline.tokenizers import check_local_model, encode_prompts, load_tokenizer, tokenizer_identity


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
