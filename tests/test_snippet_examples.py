"""retrieval/snippet_examples.py: sequences that begin with pieces of the repository's other files."""
import json
from pathlib import Path

import datasets
import infilling_runs
import numpy as np
import pytest
import tiny_models
from repository_runs import save_repository
from training_runs import arguments, command, failure, manifest_of

import train
from pipeline.merging.card import prompt_section
from pipeline.model.padding import IGNORED_LABEL
from pipeline.prompts.repository_form import COMMENTED, MANIFEST_ENTRY
from pipeline.training.training_data import ONE_CHUNK, REPOSITORY, Data, encode_splits

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = ("--repository_tokens", 240, "--sequence_tokens", 120)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose files have something to say to one another."""
    return save_repository(tmp_path_factory.mktemp("repository") / "data")


def encoded(model: Path, port: Path, *options: object, context: int = 512, marks: tuple = ()) -> Data:
    """Return what a run learns from, with a vocabulary that has `marks` too."""
    args = arguments(model, port, "--dry_run", *OPTIONS, *options)
    return encode_splits(args, infilling_runs.with_tokens(*marks), 0.1, context)


def test_the_labels_are_those_without_pieces(model_folder: Path, port: Path) -> None:
    """A model is taught to write pieces of other files, or misses tokens of its own."""
    tokenizer = tiny_models.make_tokenizer()
    plain = encoded(model_folder, port, "--repository_tokens", 0)
    found = encoded(model_folder, port, "--repository_fraction", 1.0)
    files = datasets.load_from_disk(str(port / "files"))["train"]
    paths = dict(zip(files["path"], files["text"], strict=True))
    assert len(plain.train) == len(found.train) == found.with_pieces
    assert REPOSITORY not in plain.also
    for i in range(len(found.train)):
        one, other = plain.train[i], found.train[i]
        added = len(other["input_ids"]) - len(one["input_ids"])
        assert 0 < added <= 240
        assert other["input_ids"][added:] == one["input_ids"]
        assert other["labels"] == [IGNORED_LABEL] * added + one["labels"]
        *pieces, own = [line[3:] for line in tokenizer.decode(other["input_ids"][:added]).split("\n")
                        if line.startswith("// ")]
        assert pieces
        assert own not in pieces
        assert tokenizer.decode(one["input_ids"], skip_special_tokens=True) in paths[own]
        assert set(pieces) < set(paths)  # of train alone


def test_pieces_stand_before_a_middle(model_folder: Path, port: Path) -> None:
    """A model is asked for the middle behind pieces, and was never taught so; or they stand between marks."""
    how, marks = ("--fim_rate", 0.9), infilling_runs.MARKS
    plain = encoded(model_folder, port, "--repository_tokens", 0, *how, marks=marks)
    found = encoded(model_folder, port, "--repository_fraction", 1.0, *how, marks=marks)
    numbers = plain.infilling.format.numbers
    infilled = [set(numbers) <= set(plain.train[i]["input_ids"]) for i in range(len(plain.train))]
    assert sum(infilled) > len(infilled) / 2
    for i, is_infilled in enumerate(infilled):
        one, other = plain.train[i], found.train[i]
        added = len(other["input_ids"]) - len(one["input_ids"])
        assert 0 < added <= 240
        assert other["input_ids"][added:] == one["input_ids"]
        assert other["labels"] == [IGNORED_LABEL] * added + one["labels"]
        assert not set(numbers) & set(other["input_ids"][:added])
        assert (other["input_ids"][added] == numbers[0]) is is_infilled


def test_a_share_of_the_sequences_is_chosen(model_folder: Path, port: Path) -> None:
    """All sequences begin with pieces, so that the model no longer knows how a file begins; or others do in
    every run."""
    plain = encoded(model_folder, port, "--repository_tokens", 0).train
    one, other = (encoded(model_folder, port, "--repository_fraction", 0.4) for _ in range(2))
    assert one.train.ids.tolist() == other.train.ids.tolist()
    longer = int((one.train.lengths > plain.lengths).sum())
    assert longer == one.with_pieces
    assert 0.2 * len(plain) < longer < 0.6 * len(plain)
    another = encoded(model_folder, port, "--repository_fraction", 0.4, "--seed", 1)
    assert len(another.train) == len(one.train)


def test_validation_is_behind_pieces_too(model_folder: Path, port: Path) -> None:
    """Nobody sees during training whether pieces help; or validation files are shown."""
    found = encoded(model_folder, port)
    tokenizer = tiny_models.make_tokenizer()
    assert set(found.also) == {ONE_CHUNK, REPOSITORY}
    for i in range(len(found.validation)):
        one, other = found.validation[i], found.also[REPOSITORY][i]
        added = len(other["input_ids"]) - len(one["input_ids"])
        assert other["labels"][added:] == one["labels"]
        before = tokenizer.decode(other["input_ids"][:added])
        assert before.count("// src/validation/") == 1
        assert before.rstrip().rsplit("\n", 1)[1].startswith("// src/validation/")
        assert "// src/train/" in before


def test_a_run_keeps_its_pieces_and_says_its_form(model_folder: Path, port: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture) -> None:
    """The benchmark asks a model in another form than it was taught, or a second run looks for everything
    again."""
    output = tmp_path / "adapter"
    before = {file: file.read_bytes() for file in port.rglob("*") if file.is_file()}
    train.main(command(model_folder, port, output, *OPTIONS, "--max_steps", 1))
    assert "behind pieces of other files)" in capsys.readouterr().out
    manifest = manifest_of(output)
    assert manifest[MANIFEST_ENTRY] == COMMENTED._asdict()
    assert manifest["counts"]["train_examples_behind_pieces"] > 0
    assert "repository_loss_after" in manifest["summary"]
    assert {file: file.read_bytes() for file in before} == before
    kept = json.loads(port.with_name("data.pieces.json").read_text())
    assert len(kept["found"]) >= manifest["counts"]["train_examples_behind_pieces"]
    card = "\n".join(prompt_section(manifest))
    assert "at most 240 tokens of pieces" in card
    assert "// PATH/OF/THE/FILE.kt" in card
    assert prompt_section(None) == prompt_section({}) == []


@pytest.mark.parametrize(("options", "expected"), [
    (("--train_on", "pairs"), "--repository_tokens 240: pieces stand before sequences of whole files"),
    (("--repository_fraction", 0), "--repository_fraction 0: no sequence would begin with pieces"),
    (("--repository_tokens", 2), "no piece of another file has been found"),
    (("--repository_tokens", 400), "and the model's context 512; lower it, or --sequence_tokens")])
def test_what_cannot_work_is_said_in_a_line(options: tuple, expected: str, model_folder: Path, port: Path,
                                            tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A wrong flag ends in a traceback after an hour, or silently trains without pieces."""
    line = failure(command(model_folder, port, tmp_path / "adapter", *OPTIONS, *options), capsys)
    assert expected in line


def test_one_file_has_nothing_to_look_in(model_folder: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture) -> None:
    """A data set of one file is trained on as if it had pieces."""
    alone = save_repository(tmp_path / "data", train=1)
    line = failure(command(model_folder, alone, tmp_path / "adapter", *OPTIONS), capsys)
    assert "no piece of another file has been found" in line


def test_the_query_is_what_stands_before_the_labels() -> None:
    """Pieces are looked for with the lines that the model is to write."""
    from pipeline.retrieval.snippet_examples import FIRST_TOKENS, PieceQueries

    tokenizer = tiny_models.make_tokenizer()
    text = "".join(f"val line{i} = {i}\n" for i in range(60))
    ids = np.array(tokenizer(text)["input_ids"], dtype=np.int32)
    queries = PieceQueries(tokenizer, 1.0, 0)
    queries.take(0, 7, ids, 0, 1)
    queries.take(1, 7, ids, 200, 300)
    assert queries.found[0] == (7, tokenizer.decode(ids[:FIRST_TOKENS]))
    assert tokenizer.decode(ids[:300]).endswith(queries.found[1][1])
    assert queries.found[1][1].count("\n") <= 20
