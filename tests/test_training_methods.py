"""pipeline/training/methods.py: methods among what is learned."""
from pathlib import Path

import pytest
import tiny_models
from datasets import Dataset
from training_runs import arguments

import train
from pipeline.fim.syntax_units import declarations_of
from pipeline.model.padding import IGNORED_LABEL
from pipeline.run.errors import PipelineError
from pipeline.training.methods import last_part, method_examples
from pipeline.training.training_data import Data, encode_splits

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


CLASSES = """package a

import b.C

class A(val x: Int) : B {
    val s = "}ä"

    fun f() = 1
}

class Empty
class Nothing { }
object O {
    val y = 2
}
fun g(): Int {
    return 3
}
enum class E { ONE, TWO }
"""


def test_where_declarations_end() -> None:
    """What is taught to end is a function a second time, a class without a body, or what does not parse; or
    it ends elsewhere, behind characters of several bytes."""
    found = [CLASSES[begin:end] for begin, end in declarations_of(CLASSES, "a/A.kt")]
    assert found == ['\n    val s = "}ä"\n\n    fun f() = 1\n}', "\n    val y = 2\n}", " ONE, TWO }"]
    assert declarations_of(CLASSES, "a/A.zig") == []
    assert declarations_of("class Broken {\n    val = \n}\n", "a/A.kt") == []
    java = "class A { int x; }\nvoid f() { }\ninterface B { int y(); }\n"
    assert [java[begin:end] for begin, end in declarations_of(java, "A.java")] == [" int x; }", " int y(); }"]


def test_one_in_five_is_another_declaration() -> None:
    """A model learns to end its functions alone, and writes on behind every class."""
    tokenizer = tiny_models.make_tokenizer()
    files = Dataset.from_dict({"text": [CLASSES] * 3, "path": ["a.kt"] * 3, "source_line": [1, 2, 3]})
    start = CLASSES.index("fun g()")
    methods = Dataset.from_dict({"signature": ["fun g(): Int {"] * 3, "body": ["\n    return 3\n}"] * 3,
                                 "source_line": [1, 2, 3], "start": [start] * 3})
    for number, declarations in ((3, 0), (5, 1), (11, 2)):
        found = method_examples(tokenizer, methods, files, number, 400, 0)
        labels = [tokenizer.decode([label for label in found[i]["labels"] if label != IGNORED_LABEL])
                  for i in range(len(found))]
        assert all(text.endswith("}" + tokenizer.eos_token) for text in labels)
        assert sum("return 3" not in text for text in labels) == declarations
        assert len(found) == declarations + min(3, number - declarations)
        prompts = [tokenizer.decode(found[i]["input_ids"][:found[i]["labels"].count(IGNORED_LABEL)])
                   for i in range(len(found))]
        assert all(prompt.endswith("{") and CLASSES.startswith(prompt) for prompt in prompts)


@pytest.mark.parametrize(("text", "characters", "part"), [
    ("a\nbc\nd", 10, "a\nbc\nd"), ("a\nbc\nd", 4, "d"), ("a\nbc\nd", 5, "bc\nd"), ("abcdef", 3, "def")])
def test_a_prompt_begins_with_a_line(text: str, characters: int, part: str) -> None:
    """A prompt begins in the middle of a line, or a long file is tokenized whole for each of its methods."""
    assert last_part(text, characters) == part
