"""pipeline/datasets.py: the examples that stages 3 and 5 read."""
import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.datasets import load_examples, load_files
from pipeline.errors import PipelineError
from pipeline.files import hash_files
from pipeline.manifests import write_manifest


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


def test_load_examples_notices_a_flipped_byte(make_examples: Callable[..., Path]) -> None:
    """A damaged data set is trained on without a word."""
    folder = make_examples()
    arrow = next(folder.glob("train/*.arrow"))
    content = bytearray(arrow.read_bytes())
    content[content.index(b"val a")] ^= 1
    arrow.write_bytes(content)
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
    content = bytearray(arrow.read_bytes())
    content[content.index(b"fun ")] ^= 1
    arrow.write_bytes(content)
    with pytest.raises(PipelineError, match=f"{arrow.name}: has changed since it was written"):
        load_examples(str(folder), ["train"])
