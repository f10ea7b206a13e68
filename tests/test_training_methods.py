"""pipeline/training/methods.py: methods among what is learned."""
from pathlib import Path

import pytest
import tiny_models
from training_runs import arguments

import train
from pipeline.errors import PipelineError
from pipeline.models import IGNORED_LABEL
from pipeline.training.data import Data, encode_splits
from pipeline.training.methods import last_part

EOS = tiny_models.make_tokenizer().eos_token_id


@pytest.fixture(scope="module")
def methods_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with whole files and methods."""
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "methods", train=36, validation=4,
                                    files=True, methods=True)


def encoded(dataset: Path, *more: object) -> Data:
    """Return what a run with these arguments learns from."""
    args = arguments(dataset, dataset, "--sequence_tokens", 60, *more)
    return encode_splits(args, tiny_models.make_tokenizer(), train.DEFAULT_REPLAY_FRACTION)


def test_a_share_of_what_is_learned_are_methods(methods_folder: Path) -> None:
    """A model learns to end its methods before their brace, to write on behind it, or signatures that it does
    not have to write; or another share than was asked for."""
    plain, mixed = encoded(methods_folder), encoded(methods_folder, "--method_fraction", 0.25)
    assert plain.methods == 0
    assert mixed.methods == round(len(plain.train) / 3)
    assert len(mixed.train) == len(plain.train) + mixed.methods
    tokenizer, texts = tiny_models.make_tokenizer(), []
    for i in range(len(plain.train), len(mixed.train)):
        row = mixed.train[i]
        assert len(row["input_ids"]) <= 60
        place = row["labels"].count(IGNORED_LABEL)
        assert row["labels"] == [IGNORED_LABEL] * place + row["input_ids"][place:]
        prompt, body = tokenizer.decode(row["input_ids"][:place]), tokenizer.decode(row["labels"][place:])
        assert prompt.endswith("Int {")
        assert body.endswith("}" + tokenizer.eos_token)
        assert body.count("}") == 1
        texts.append(prompt + body)
    assert len(set(texts)) == len(texts)
    assert mixed.train.lengths.sum() == len(mixed.train.ids)
    other = encoded(methods_folder, "--method_fraction", 0.25, "--seed", 1)
    assert other.train.ids.tolist() != mixed.train.ids.tolist()
    assert mixed.train.ids.max() >= EOS


def test_more_methods_than_there_are(methods_folder: Path, capsys: pytest.CaptureFixture) -> None:
    """A run learns a smaller share than it was told, and nobody says so."""
    assert encoded(methods_folder, "--method_fraction", 0.9).methods == 36
    assert "has 36" in capsys.readouterr().err


def test_a_data_set_without_methods_is_one_line(files_folder: Path) -> None:
    """--method_fraction is silently without effect."""
    with pytest.raises(PipelineError, match=r"--method_fraction: .* holds no methods; run preprocess"):
        encoded(files_folder, "--method_fraction", 0.1)


@pytest.mark.parametrize(("text", "characters", "part"), [
    ("a\nbc\nd", 10, "a\nbc\nd"), ("a\nbc\nd", 4, "d"), ("a\nbc\nd", 5, "bc\nd"), ("abcdef", 3, "def")])
def test_a_prompt_begins_with_a_line(text: str, characters: int, part: str) -> None:
    """A prompt begins in the middle of a line, or a long file is tokenized whole for each of its methods."""
    assert last_part(text, characters) == part
