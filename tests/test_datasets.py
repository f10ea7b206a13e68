"""pipeline/data/datasets.py: the examples that stages 3 and 5 read."""
import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.datasets import load_examples, load_files
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import hash_files
from pipeline.run.manifests import write_manifest


@pytest.fixture(scope="module")
def make_examples(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a small data set folder with its manifest."""
    import datasets

    def make(columns: tuple[str, ...] = ("prompt", "completion"),
             splits: tuple[str, ...] = ("train", "test")) -> Path:
        datasets.disable_progress_bars()
        folder = tmp_path_factory.mktemp("examples") / "data"
        rows = {column: ["val a", "val b"] for column in columns}
        datasets.DatasetDict({split: datasets.Dataset.from_dict(rows)
                              for split in splits}).save_to_disk(str(folder))
        write_manifest(folder / "manifest.json", argparse.Namespace(), hash_files(folder), 0.0)
        return folder
    return make


def test_load_examples(make_examples: Callable[..., Path]) -> None:
    """The data set of stage 2 cannot be read by stages 3 and 5."""
    data = load_examples(str(make_examples()), ["train", "test"])
    assert data["test"][1] == {"prompt": "val b", "completion": "val b"}


def test_load_examples_names_what_is_missing(make_examples: Callable[..., Path], tmp_path: Path) -> None:
    """A data set of another kind gives a KeyError somewhere in the training."""
    with pytest.raises(PipelineError, match="no split 'validation'; it has train, test"):
        load_examples(str(make_examples()), ["train", "validation"])
    with pytest.raises(PipelineError, match="has no column completion; it has prompt, text"):
        load_examples(str(make_examples(("prompt", "text"))), ["train"])
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(PipelineError, match="no data set folder"):
            load_examples(str(missing), ["train"])


def test_a_path_that_datasets_reads_as_another(make_examples: Callable[..., Path], tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called `a::b`, or a path with `://`, ends in a traceback, or another data set is read."""
    for name, folder in (("a::b", "a::b"), ("./a://b", "a:/b")):
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        make_examples().rename(tmp_path / folder)
        monkeypatch.chdir(tmp_path)
        if "::" in name:
            with pytest.raises(PipelineError, match="choose a path without it"):
                load_examples(name, ["train"])
        else:
            assert load_examples(name, ["train"])["test"][1]["prompt"] == "val b"


def flip_a_bit(file: Path, at: bytes) -> None:
    """Change one bit of a file, where these bytes stand first."""
    content = bytearray(file.read_bytes())
    content[content.index(at)] ^= 1
    file.write_bytes(content)


def test_load_examples_notices_a_flipped_byte(make_examples: Callable[..., Path]) -> None:
    """A damaged data set is trained on without a word."""
    folder = make_examples()
    arrow = next(folder.glob("train/*.arrow"))
    flip_a_bit(arrow, b"val a")
    with pytest.raises(PipelineError, match=f"{arrow.name}: has changed since it was written"):
        load_examples(str(folder), ["train"])
    assert load_examples(str(folder), ["train"], verify=False)["train"][0]["prompt"] == "wal a"


def test_load_examples_of_a_damaged_file_without_manifest(make_examples: Callable[..., Path]) -> None:
    """A damaged file gives pyarrow's traceback."""
    folder = make_examples()
    (folder / "manifest.json").unlink()
    next(folder.glob("train/*.arrow")).write_bytes(b"ARROW1")
    with pytest.raises(PipelineError, match="cannot be read"):
        load_examples(str(folder), ["train"])


def test_load_files(make_examples: Callable[..., Path], files_folder: Path) -> None:
    """The whole files of stage 2 are not found by stages 3 and 5; or a data set without them is refused."""
    assert load_files(str(make_examples())) is None
    files = load_files(str(files_folder), ("train", "validation", "test"))
    pairs = load_examples(str(files_folder), ("train",))["train"]
    assert files["train"][0]["text"].startswith(pairs[0]["prompt"] + pairs[0]["completion"])


def test_load_examples_notices_a_flipped_byte_in_the_files(files_folder: Path, tmp_path: Path) -> None:
    """Damaged files are trained on without a word."""
    folder = tmp_path / "data"
    shutil.copytree(files_folder, folder)
    write_manifest(folder / "manifest.json", argparse.Namespace(), hash_files(folder), 0.0)
    assert load_examples(str(folder), ["train"])
    arrow = next(folder.glob("files/train/*.arrow"))
    flip_a_bit(arrow, b"fun ")
    with pytest.raises(PipelineError, match=f"{arrow.name}: has changed since it was written"):
        load_examples(str(folder), ["train"])


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Return a function that saves columns as all three splits of a data set from elsewhere."""
    import datasets

    def save(fmt: str | None = None, **columns: list) -> str:
        rows = {"prompt": ["val a", "val b"], "completion": ["= 1", "= 2"]} | columns
        split = datasets.Dataset.from_dict(rows)
        data = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), split))
        data.with_format(fmt).save_to_disk(str(tmp_path / "data"))
        return str(tmp_path / "data")
    return save


MESSAGES = [[{"role": "user", "content": "val a"}]] * 2


@pytest.mark.parametrize(("columns", "said"), [
    ({"completion": ["= 1", None]}, "split 'test': completion is null in 1 of 2 rows, first in row 1; fill"),
    ({"prompt": [None, None]}, "split 'test': prompt holds null, not text"),
    ({"prompt": MESSAGES}, "split 'test': prompt holds List, not text; write each as one string \\(of chat"),
    ({"completion": [1, 2]}, "split 'test': completion holds int64, not text"),
    ({"completion": ["", ""]}, "split 'test': every completion is empty")])
def test_columns_that_hold_no_text_are_named(columns: dict[str, list], said: str,
                                             save: Callable[..., str]) -> None:
    """A data set from elsewhere, with a null or with chat messages, ends in a tokenizer's traceback."""
    with pytest.raises(PipelineError, match=said):
        load_examples(save(**columns), ["test"])


@pytest.mark.parametrize(("values", "said"), [
    (["src/A.kt", "src/B.kt"], "source_line holds string"), ([None, None], "source_line holds null"),
    ([3, None], "source_line holds nulls"), ([1.0, 2.0], "source_line holds float64"),
    ([[1], [2]], "source_line holds List")])
def test_other_columns_of_our_names_are_left_out(values: list, said: str, save: Callable[..., str],
                                                 capsys: pytest.CaptureFixture) -> None:
    """A data set from elsewhere with a column source_line that means something else cannot be used."""
    rows = load_examples(save(source_line=values, start=values), ["test"])["test"]
    assert rows.column_names == ["prompt", "completion"]
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    assert said in notes[0]
    assert "each example counts as a file of its own" in notes[0]


def test_our_own_columns_stay(save: Callable[..., str], capsys: pytest.CaptureFixture) -> None:
    """Examples of one file count as independent: the intervals become too narrow."""
    rows = load_examples(save(source_line=[7, 7], start=[0, 5], other=[None, None]), ["test"])["test"]
    assert rows[:]["source_line"] == [7, 7]
    assert rows.column_names == ["prompt", "completion", "source_line", "start", "other"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fmt", ["numpy", "torch", "pandas"])
def test_a_format_that_was_saved_is_not_used(fmt: str, save: Callable[..., str]) -> None:
    """A data set that was saved with numpy's types gives arrays where lists of texts are read."""
    rows = load_examples(save(fmt, source_line=[1, 2]), ["test"])["test"]
    assert rows[:] == {"prompt": ["val a", "val b"], "completion": ["= 1", "= 2"], "source_line": [1, 2]}


def test_hidden_columns_are_read(make_examples: Callable[..., Path]) -> None:
    """A column that was hidden when the data set was saved is a KeyError."""
    import datasets

    folder = make_examples()
    data = datasets.load_from_disk(str(folder)).with_format(None, columns=["prompt"])
    data.save_to_disk(str(folder.with_name("hidden")))
    assert load_examples(str(folder.with_name("hidden")), ["test"])["test"][0]["completion"] == "val a"


def test_splits_that_are_not_asked_for_are_not_checked(save: Callable[..., str]) -> None:
    """A benchmark refuses a data set for what it does not read."""
    data = load_examples(save(prompt=MESSAGES), [])
    assert data["test"].features["prompt"] is not None
    with pytest.raises(PipelineError, match="not text"):
        load_examples(str(Path(save(prompt=MESSAGES))), [], optional=["train", "other"])
