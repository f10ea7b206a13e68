"""merging/adapter_tokenizer.py: the merged model has the tokenizer that the adapter was trained with."""
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tiny_models
from merging_runs import merge, refusal
from transformers import AutoTokenizer

from pipeline.merging.adapter_tokenizer import tokenizer_files

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def adapter(adapter_folder: Path, tmp_path: Path) -> Path:
    """A copy of the adapter."""
    return shutil.copytree(adapter_folder, tmp_path / "adapter")


def test_the_tokenizer_is_copied_to_the_byte(adapter: Path, tmp_path: Path) -> None:
    """The merged model tokenizes otherwise than the adapter's training did, or lacks its chat template."""
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps(config | {"of_a_later_version": 1}))
    (adapter / "special_tokens_map.json").write_text('{"eos_token":   "<|endoftext|>"}')
    (adapter / "tokenizer.json").write_text((adapter / "tokenizer.json").read_text() + "\n")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "tokenizer.model").write_bytes(b"what sentencepiece reads")
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    merge(adapter, tmp_path / "merged", "--verify", "on")
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
             "tokenizer.model", "additional_chat_templates/tools.jinja"}
    assert set(tokenizer_files(adapter)) == names
    assert set(json.loads((tmp_path / "merged" / "manifest.json").read_text())["outputs"]) >= names
    for name in names:
        assert (tmp_path / "merged" / name).read_bytes() == (adapter / name).read_bytes()


def test_the_bases_own_files_are_kept_where_they_do_the_same(adapter: Path, model_folder: Path,
                                                            tmp_path: Path) -> None:
    """A converter, or a server, does not know the tokenizer that the library wrote anew at the end of
    training."""
    base = shutil.copytree(model_folder, tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):  # as its authors wrote them
        (base / name).write_text(json.dumps(json.loads((base / name).read_text()), indent=1))
    (base / "special_tokens_map.json").write_text('{"eos_token":   "<|endoftext|>"}')
    merge(adapter, tmp_path / "merged", "--base_model", base)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    merge(adapter, tmp_path / "other", "--base_model", base)
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("left", [set(), {"tokenizer_config.json"}, {"tokenizer.json"}])
def test_what_an_adapter_lacks_is_the_bases(left: set[str], adapter: Path, model_folder: Path,
                                            tmp_path: Path) -> None:
    """An adapter without a vocabulary, or with that alone, is published with a tokenizer of three tokens."""
    for name in tokenizer_files(adapter):
        if name not in left:
            (adapter / name).unlink()
    merge(adapter, tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (model_folder / name).read_bytes()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tiny_models.make_tokenizer())


def test_no_tokenizer_at_all_is_one_line(adapter: Path, model_folder: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture) -> None:
    """A model that nobody can use is published, or the merge ends in a traceback."""
    base = shutil.copytree(model_folder, tmp_path / "base")
    for folder in (adapter, base):
        for name in tokenizer_files(folder):
            (folder / name).unlink()
    assert "holds a tokenizer" in refusal(capsys, adapter, tmp_path / "merged", "--base_model", base)


def test_added_tokens_are_refused_with_their_number(adapter: Path, model_folder: Path, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture) -> None:
    """Tokens whose embeddings nobody has are published, and the first prompt that holds one fails."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_tokens(["<fim_a>", "<fim_b>", "<fim_c>"])
    tokenizer.save_pretrained(adapter)
    line = refusal(capsys, adapter, tmp_path / "merged")
    assert "has 3 tokens more than the base model" in line
    assert "'<fim_a>'" in line
    # those of the base's own tokenizer, such as Gemma's token for images, are no reason
    base = shutil.copytree(model_folder, tmp_path / "base")
    tokenizer.save_pretrained(base)
    merge(adapter, tmp_path / "merged", "--base_model", base)


def test_the_proof_is_on_the_bases_tokens(adapter: Path, tmp_path: Path,
                                          capsys: pytest.CaptureFixture) -> None:
    """A tokenizer of another model beside the adapter passes for the one that it was trained with."""
    merge(adapter, tmp_path / "merged", "--verify", "on")
    assert "gives other tokens" not in capsys.readouterr().err
    rules = json.loads((adapter / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:5]
    (adapter / "tokenizer.json").write_text(json.dumps(rules))
    merge(adapter, tmp_path / "merged", "--verify", "on")
    captured = capsys.readouterr()
    assert "gives other tokens than that of the base model" in captured.err
    assert "verified against base + adapter" in captured.out


def test_a_sentencepiece_model_alone_is_kept(tmp_path: Path) -> None:
    """An adapter whose tokenizer is tokenizer.model alone gets a tokenizer of three tokens."""
    text = tmp_path / "text"
    text.write_text("".join(prompt + completion for prompt, completion in tiny_models.examples(60, seed=9)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, bos_id=1, eos_id=2, unk_id=0, minloglevel=2)
    base = tiny_models.save_model(tmp_path / "base", "llama")
    adapter = tiny_models.save_adapter(tmp_path / "adapter", base)
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>",
                "unk_token": "<unk>"}
    for folder in (base, adapter):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        shutil.copy(tmp_path / "tokenizer.model", folder)
    (adapter / "tokenizer_config.json").unlink()
    merge(adapter, tmp_path / "merged", "--verify", "on")
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == \
        (adapter / "tokenizer.model").read_bytes()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) >= 300
