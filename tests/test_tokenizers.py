"""pipeline/tokenizers.py: the folders that hold one, and the tokens of a prompt."""
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.tokenizers import check_local_model, encode_prompts


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
