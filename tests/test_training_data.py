"""pipeline/training/training_data.py: what a run learns from, and what it is validated on."""
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import tiny_models
from datasets import Dataset, DatasetDict, load_from_disk
from training_runs import arguments, save_replay

import train
from pipeline.data.encoded_examples import EncodedExamples, encode_examples
from pipeline.model.device import context_length
from pipeline.model.padding import IGNORED_LABEL
from pipeline.model.tokenizers import encode_pairs
from pipeline.prompts.contexts import Cut, FileTexts, contexts_of, find_cuts
from pipeline.run.errors import PipelineError
from pipeline.training.sequences import sequences_of
from pipeline.training.training_data import (
    MIN_LENGTH,
    ONE_CHUNK,
    REPLAY,
    Data,
    check_lengths,
    choose_train_on,
    encode_splits,
    ends_of,
)

EOS = tiny_models.make_tokenizer().eos_token_id


def encoded(model: Path, dataset: Path, *more: object, context: int | None = None) -> Data:
    """Return what a run with these arguments learns from and is validated on."""
    args = arguments(model, dataset, *more)
    return encode_splits(args, tiny_models.make_tokenizer(), train.DEFAULT_REPLAY_FRACTION, context)


def rows_of(examples: EncodedExamples) -> list[dict[str, list[int]]]:
    """Return all examples as the Trainer gets them."""
    return [examples[i] for i in range(len(examples))]


def labels_of(row: dict[str, list[int]]) -> list[int]:
    """Return the labels of an example."""
    return [label for label in row["labels"] if label != IGNORED_LABEL]


# ------------------------------------------------------------------------------------------------------------
# What is learned from
# ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "files", "chosen"), [
    ((), True, "files"), (("--train_on", "files"), True, "files"), (("--train_on", "pairs"), True, "pairs"),
    ((), False, "pairs"), (("--train_on", "pairs"), False, "pairs")])
def test_files_are_learned_from_if_there_are_any(flags: tuple, files: bool, chosen: str, model_folder: Path,
                                                 dataset_folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture) -> None:
    """A data set with files is trained on pairs; one without cannot be trained on, or nobody is told."""
    args = arguments(model_folder, dataset_folder, *flags)
    assert choose_train_on(args, object() if files else None) == chosen
    said = capsys.readouterr().err
    assert said.startswith("note: ") is (not files)
    assert said.count("\n") == (not files)
    monkeypatch.setenv("RANK", "1")  # of several processes, the first says it
    choose_train_on(args, object() if files else None)
    assert capsys.readouterr().err == ""


def test_files_that_are_not_there_are_one_line(model_folder: Path, dataset_folder: Path) -> None:
    """--train_on files silently trains on something else."""
    with pytest.raises(PipelineError, match=r"--train_on files: .* holds none; run preprocess_data.py again"):
        encoded(model_folder, dataset_folder, "--train_on", "files")


def test_files_are_learned_from_whole(model_folder: Path, files_folder: Path) -> None:
    """Tokens of the training files are not learned, or those of other splits are."""
    data = encoded(model_folder, files_folder, "--sequence_tokens", 40)
    assert data.train_on == "files"
    rows = rows_of(data.train)
    assert max(len(row["input_ids"]) for row in rows) == 40
    texts = load_from_disk(str(files_folder / "files"))["train"]["text"]
    every = rows_of(sequences_of(tiny_models.make_tokenizer(), texts, 0, 40))
    assert sorted(map(str, rows)) == sorted(map(str, every))
    assert rows != every  # in an order of their own
    assert sum(label == EOS for row in rows for label in labels_of(row)) == len(texts)
    drawn = encoded(model_folder, files_folder, "--sequence_tokens", 40, "--max_train_samples", 7)
    assert rows_of(drawn.train) == rows[:7]
    other = encoded(model_folder, files_folder, "--sequence_tokens", 40, "--seed", 1)
    assert rows_of(other.train)[:7] != rows[:7]


@pytest.mark.parametrize("folder", ["dataset_folder", "files_folder"])
def test_pairs_are_drawn_at_random_by_the_seed(folder: str, model_folder: Path,
                                               request: pytest.FixtureRequest) -> None:
    """--max_train_samples takes the first files only, or another sample in every run."""
    dataset = request.getfixturevalue(folder)

    def rows(number: int, seed: int) -> list[dict[str, list[int]]]:
        settings = ("--train_on", "pairs", "--max_train_samples", number, "--seed", seed)
        return rows_of(encoded(model_folder, dataset, *settings).train)

    every = rows(0, 1)
    assert len(every) == len(load_from_disk(str(dataset))["train"])
    assert rows(5, 1) == rows(5, 1) != rows(5, 2)
    assert rows(5, 1) != every[:5]
    assert all(row in every for row in rows(5, 1))
    assert rows(9999, 1) == every


@pytest.mark.parametrize(("end_of_text", "expected"), [("file_ends", [False, True, False]),
                                                       ("always", [True, True, True])])
def test_where_the_end_of_text_is_learned(end_of_text: str, expected: list[bool], model_folder: Path,
                                          dataset_folder: Path) -> None:
    """The model stops behind every chunk, or --end_of_text does nothing."""
    args = arguments(model_folder, dataset_folder, "--end_of_text", end_of_text)
    assert ends_of(args, [Cut("a", False), Cut("a", True), None]) == expected


@pytest.mark.parametrize("end_of_text", ["file_ends", "always"])
def test_a_pair_ends_where_its_file_ends(end_of_text: str, model_folder: Path, files_folder: Path,
                                         capsys: pytest.CaptureFixture) -> None:
    """In pairs, too, the model learns to stop where code goes on."""
    settings = ("--train_on", "pairs", "--end_of_text", end_of_text)
    data = encoded(model_folder, files_folder, *settings)
    for examples in (data.train, data.validation, data.also[ONE_CHUNK]):
        ends = [row["labels"][-1] == EOS for row in rows_of(examples)]
        assert ends == [end_of_text == "always" or i % 3 == 2 for i in range(len(ends))]
    assert "note" not in capsys.readouterr().err


def test_pairs_without_files_end_nowhere_unless_asked(model_folder: Path, dataset_folder: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    """A model that never stops is trained from a data set without files, and nobody is told."""
    data = encoded(model_folder, dataset_folder)
    assert not any(EOS in row["labels"] for row in rows_of(data.train))
    said = capsys.readouterr().err
    assert "the end of text is no label (--end_of_text always makes it one behind each)" in said
    always = encoded(model_folder, dataset_folder, "--end_of_text", "always")
    assert all(row["labels"][-1] == EOS for row in rows_of(always.train))
    assert "no label" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------
# What is validated on
# ------------------------------------------------------------------------------------------------------------

def test_validation_is_behind_more_of_the_file_and_behind_one_chunk(model_folder: Path,
                                                                    files_folder: Path) -> None:
    """The best adapter is chosen by a context that no editor gives, or two lengths of context are compared on
    different completions."""
    for train_on in ("files", "pairs"):
        settings = ("--train_on", train_on, "--sequence_tokens", 120, "--max_validation_samples", 8)
        data = encoded(model_folder, files_folder, *settings)
        assert set(data.also) == {ONE_CHUNK}
        longer, one_chunk = rows_of(data.validation), rows_of(data.also[ONE_CHUNK])
        assert len(longer) == len(one_chunk) == 8
        assert [labels_of(row) for row in longer] == [labels_of(row) for row in one_chunk]
        more = [len(a["input_ids"]) - len(b["input_ids"]) for a, b in zip(longer, one_chunk, strict=True)]
        assert min(more) >= 0  # nothing, where the pair begins its file
        assert max(more) > 30
        assert max(row["labels"].count(IGNORED_LABEL) for row in longer) <= 120
    tokenizer = tiny_models.make_tokenizer()
    every = encoded(model_folder, files_folder, "--sequence_tokens", 120, "--max_validation_samples", 0)
    rows = load_from_disk(str(files_folder))["validation"][:]
    cuts = find_cuts(rows, FileTexts(load_from_disk(str(files_folder / "files"))["validation"]))
    expected = contexts_of(tokenizer, [cut.before for cut in cuts], 120)
    for examples, texts in ((every.validation, expected), (every.also[ONE_CHUNK], rows["prompt"][:])):
        prompts = [row["input_ids"][:row["labels"].count(IGNORED_LABEL)] for row in rows_of(examples)]
        assert prompts == encode_pairs(tokenizer, texts, rows["completion"][:])[0]


def test_a_long_context_leaves_room_for_the_completion(model_folder: Path, files_folder: Path) -> None:
    """In a model whose context --sequence_tokens fills, completions are cut off and the loss is that of their
    heads; or the model is asked beyond its positions."""
    for settings, longest in ((("--max_length", 64, "--sequence_tokens", 100), 100),
                              (("--max_length", 200, "--sequence_tokens", 100), 200)):
        data = encoded(model_folder, files_folder, *settings)
        unbounded = encoded(model_folder, files_folder, "--sequence_tokens", 100)
        assert max(data.validation.lengths) <= longest
        for row, expected in zip(rows_of(data.validation), rows_of(unbounded.validation), strict=True):
            assert labels_of(row) == labels_of(expected)
            end = min(len(expected["input_ids"]), longest)
            assert row["input_ids"] == expected["input_ids"][-end:]


def without_a_file(dataset: Path, folder: Path) -> Path:
    """Save a data set whose validation files lack the second, and return its folder."""
    shutil.copytree(dataset, folder)
    files = load_from_disk(str(dataset / "files"))
    shutil.rmtree(folder / "files")
    DatasetDict({**files, "validation": files["validation"].select([0, 2, 3])}).save_to_disk(
        str(folder / "files"))
    return folder


@pytest.mark.parametrize("lacking", ["files", "a file", "start"])
def test_validation_without_what_stands_before(lacking: str, model_folder: Path, dataset_folder: Path,
                                               files_folder: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture) -> None:
    """A data set whose files are not there, or not those of its pairs, ends in a traceback, or is validated
    otherwise than the user believes."""
    dataset = dataset_folder
    if lacking == "a file":
        dataset = without_a_file(files_folder, tmp_path / "data")
    elif lacking == "start":
        dataset = tmp_path / "data"
        load_from_disk(str(files_folder)).remove_columns("start").save_to_disk(str(dataset))
        shutil.copytree(files_folder / "files", dataset / "files")
    data = encoded(model_folder, dataset)
    assert data.also == {}
    assert data.train_on == ("pairs" if lacking == "files" else "files")
    rows = load_from_disk(str(dataset))["validation"][:]
    pairs = encode_examples(tiny_models.make_tokenizer(), rows["prompt"][:], rows["completion"][:], 1024)
    assert data.validation.prompt_lengths.tolist() == pairs.prompt_lengths.tolist()
    assert "validated behind their own prompts alone" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------
# Replay
# ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("train_on", ["files", "pairs"])
def test_replay_is_learned_as_the_rest_is(train_on: str, model_folder: Path, files_folder: Path,
                                          tmp_path: Path) -> None:
    """Of the replayed code, only completions are learned where every token of the other files is; or its
    validation lines are learned."""
    replay = save_replay(tmp_path / "replay.jsonl", 60)
    settings = ("--train_on", train_on, "--replay_dataset", replay, "--replay_fraction", 0.25)
    plain = encoded(model_folder, files_folder, "--train_on", train_on)
    data = encoded(model_folder, files_folder, *settings)
    rows = rows_of(data.train)
    number = len(plain.train)
    assert rows[:number] == rows_of(plain.train)
    assert len(rows) - number == round(number / 3)  # a quarter of all
    tokenizer = tiny_models.make_tokenizer()
    pairs = [json.loads(line) for line in replay.read_text().splitlines()]
    texts = [row["prompt"] + row["completion"] for row in pairs]
    for examples, lines in ((rows[number:], range(54)), (rows_of(data.also[REPLAY]), range(54, 60))):
        for row in examples:
            place = texts.index(tokenizer.decode(row["input_ids"]))
            assert place in lines
            [[prompt], _] = encode_pairs(tokenizer, [pairs[place]["prompt"]], [pairs[place]["completion"]])
            assert row["labels"].count(IGNORED_LABEL) == (1 if train_on == "files" else len(prompt))
            assert EOS not in row["labels"]
    assert len(data.also[REPLAY]) == 6
    assert set(data.also) == {ONE_CHUNK, REPLAY}
    assert set(data.identities) == {"data_hash", "replay_hash"}


@pytest.mark.parametrize("train_on", ["files", "pairs"])
def test_replay_ends_only_where_it_says_so(train_on: str, model_folder: Path, files_folder: Path,
                                           tmp_path: Path) -> None:
    """The model forgets that functions end, and its Python runs on; or it learns to end behind any piece."""
    replay = tmp_path / "replay.jsonl"
    replay.write_text("".join(json.dumps({"prompt": f"def f{i}(x):\n", "completion": f"    return {i}\n"}
                                         | ({"ends": i % 2 == 0} if i % 3 else {})) + "\n"
                              for i in range(60)))
    data = encoded(model_folder, files_folder, "--train_on", train_on, "--replay_dataset", replay)
    tokenizer, seen = tiny_models.make_tokenizer(), Counter()
    for row in rows_of(data.also[REPLAY]):
        text = tokenizer.decode([token for token in row["input_ids"] if token != EOS])
        number = int(text.split("return ")[1])
        ends = bool(number % 3) and number % 2 == 0
        assert (row["labels"][-1] == EOS) == ends
        assert row["labels"].count(EOS) == ends
        seen[ends] += 1
    assert seen == {True: 2, False: 4}


def test_a_replayed_completion_that_is_cut_ends_nothing() -> None:
    """A long function is cut at --max_length, and the model learns to end in the middle of it."""
    tokenizer = tiny_models.make_tokenizer()
    rows = encode_examples(tokenizer, ["fun a"] * 2, ["x " * 3, "x " * 500], 64, [True] * 2)
    assert [rows[i]["input_ids"][-1] == EOS for i in range(2)] == [True, False]


def test_replay_of_nothing_has_as_many_labels_as_tokens(model_folder: Path, files_folder: Path,
                                                        tmp_path: Path) -> None:
    """An empty line of a replay file ends a run with a traceback."""
    replay = tmp_path / "replay.jsonl"
    replay.write_text('{"prompt": "", "completion": ""}\n' * 20)
    data = encoded(model_folder, files_folder, "--replay_dataset", replay)
    assert all(len(row["labels"]) == len(row["input_ids"]) for row in rows_of(data.train))


# ------------------------------------------------------------------------------------------------------------
# Lengths
# ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def small_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny GPT-2 of 96 positions."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    context, tiny_models.CONTEXT = tiny_models.CONTEXT, 96
    try:
        return tiny_models.save_model(folder, "gpt2")
    finally:
        tiny_models.CONTEXT = context


def test_a_small_context_bounds_every_length(small_gpt2: Path, files_folder: Path,
                                             capsys: pytest.CaptureFixture) -> None:
    """Training on a model with fewer than 512 positions ends in an index error, or nobody is told why its
    sequences are short."""
    context = context_length(str(small_gpt2), None)
    assert context == 96
    args = arguments(small_gpt2, files_folder)
    check_lengths(args, context)
    assert (args.sequence_tokens, args.max_length) == (96, 96)
    assert capsys.readouterr().err == ("note: the model's context has 96 tokens, and --sequence_tokens 512 "
                                       "more; it is set to 96\n")
    data = encoded(small_gpt2, files_folder, context=context)
    for examples in (data.train, data.validation, data.also[ONE_CHUNK]):
        assert max(examples.lengths) <= 96
    assert max(data.train.lengths) == 96
    capsys.readouterr()
    args = arguments(small_gpt2, files_folder, "--sequence_tokens", 64, "--max_length", 80)
    check_lengths(args, context)
    assert (args.sequence_tokens, args.max_length) == (64, 80)
    assert capsys.readouterr().err == ""


def test_a_model_without_a_bound(model_folder: Path, dataset_folder: Path) -> None:
    """A model whose configuration names no positions (Mamba, Bloom) cannot be trained."""
    args = arguments(model_folder, dataset_folder)
    check_lengths(args, None)
    assert (args.sequence_tokens, args.max_length) == (512, 1024)


@pytest.mark.parametrize("flag", ["--max_length", "--sequence_tokens"])
def test_lengths_without_room_are_one_line(flag: str, model_folder: Path, files_folder: Path) -> None:
    """A length of 1 trains on nothing, for hours."""
    with pytest.raises(PipelineError, match=f"^{flag} {MIN_LENGTH - 1}: .* give at least {MIN_LENGTH}$"):
        encoded(model_folder, files_folder, flag, MIN_LENGTH - 1)
    encoded(model_folder, files_folder, flag, MIN_LENGTH)


# ------------------------------------------------------------------------------------------------------------
# Mistakes
# ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("mistake", "message"), [
    ("damaged", "files: cannot be read"), ("no split", "files: no split 'validation'; it has train"),
    ("no column", "files: split 'train' has no column text"), ("only values", "its files give no sequence")])
def test_files_that_cannot_serve_are_one_line(mistake: str, message: str, model_folder: Path,
                                              files_folder: Path, tmp_path: Path) -> None:
    """Files that are not what they should be end in a traceback."""
    shutil.copytree(files_folder, tmp_path / "data")
    place = tmp_path / "data" / "files"
    files = load_from_disk(str(files_folder / "files"))
    if mistake == "damaged":
        next(place.glob("train/*.arrow")).write_bytes(b"ARROW1")
    else:
        shutil.rmtree(place)
        if mistake == "no split":
            files.pop("validation")
        elif mistake == "no column":
            files = files.rename_column("text", "content")
        else:
            files["train"] = Dataset.from_dict({"text": ["9" * 300] * 3, "source_line": [1, 2, 3]})
        files.save_to_disk(str(place))
    with pytest.raises(PipelineError, match=message):
        encoded(model_folder, tmp_path / "data")
