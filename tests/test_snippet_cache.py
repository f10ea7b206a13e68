"""retrieval/snippet_cache.py: pieces for a data set's files, found once, by repository, from train alone."""
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import pipeline.retrieval.snippet_cache
from pipeline.preparation.writing import FILE
from pipeline.retrieval.index import Index, Place, query_of
from pipeline.retrieval.snippet_cache import RepositoryFiles, Request, cache_of, pieces_needed
from pipeline.run.errors import PipelineError

NAMES = ("harbour", "berth", "tide", "crane", "pilot", "ferry")


def text(name: str, number: int) -> str:
    """Return a file about something."""
    return "".join(f"fun {name}Step{number}x{i}({name}: Int) = {name} + {i * number}\n" for i in range(25))


def files(rows: list[tuple[str | None, str]]) -> Dataset:
    """Return the files of a split, given as (repository, text)."""
    return Dataset.from_dict({"text": [text for _, text in rows],
                              "source_line": list(range(1, len(rows) + 1)),
                              "repository": [repository for repository, _ in rows],
                              "path": [f"src/File{i}.kt" for i in range(len(rows))],
                              "license_file": [None] * len(rows)}, features=FILE)


TRAIN = files([("one" if i < 9 else "two", text(NAMES[i % 6], i + 1)) for i in range(12)])
REQUESTS = [*(Request(TRAIN[i]["repository"], query_of(TRAIN[i]["text"][:300]), i) for i in range(12)),
            Request("one", "harbour + berth", text="val harbour = berth"),
            Request("none", "harbour + berth", text="val harbour = berth")]


def test_pieces_come_from_the_own_repository_and_never_from_the_file(tmp_path: Path) -> None:
    """A model is shown the file that it is taught, or code of another project."""
    source = RepositoryFiles(TRAIN, "data")
    found = source.find(REQUESTS, 4, tmp_path / "pieces.json")
    assert found[-1] == []
    for request, places in zip(REQUESTS[:-1], found[:-1], strict=True):
        assert places
        for place in places:
            assert place.file != request.file
            assert TRAIN[place.file]["repository"] == request.repository
            assert source.piece(place).text == TRAIN[place.file]["text"][place.begin:place.end]
            assert source.following(place) == TRAIN[place.file]["text"][place.begin:]
    assert source.piece(found[0][0]).path == f"src/File{found[0][0].file}.kt"


def test_a_test_files_copy_in_train_is_not_shown(tmp_path: Path) -> None:
    """The answer of a test example stands before it, in a file that was copied from its own."""
    own = TRAIN[0]["text"].replace("Step1x3", "Renamed")
    query = query_of(own[:300])
    source = RepositoryFiles(TRAIN, "data")
    [with_copy] = source.find([Request("one", query, text="val other = 1")], 3, tmp_path / "a.json")
    [without] = source.find([Request("one", query, text=own)], 3, tmp_path / "b.json")
    assert with_copy[0].file == 0
    assert 0 not in {place.file for place in without}


def test_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run looks for everything again; or one is given what was found in another data set."""
    cache, source = tmp_path / "pieces.json", RepositoryFiles(TRAIN, "data")
    first = source.find(REQUESTS[:5], 4, cache)
    built = []
    monkeypatch.setattr(pipeline.retrieval.snippet_cache, "Index",
                        lambda texts: built.append(1) or Index(texts))
    assert source.find(REQUESTS[1:4], 4, cache) == first[1:4]
    assert not built
    more = source.find(REQUESTS, 4, cache)
    assert built == [1, 1, 1]
    assert more[:5] == first
    assert source.find(REQUESTS, 4, cache) == more
    assert built == [1, 1, 1]
    # the same rows, brought here in another way, are the same data set; with one more it is another
    assert RepositoryFiles(Dataset.from_dict(TRAIN[:], TRAIN.features), "owner/data").find(REQUESTS, 4,
                                                                                         cache) == more
    assert len(built) == 3
    changed = RepositoryFiles(Dataset.from_dict(TRAIN[:11], TRAIN.features), "data")
    changed.find(REQUESTS[:1], 4, cache)
    assert len(built) == 4
    changed.find(REQUESTS[:1], 5, cache)
    assert len(built) == 5


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: "[]", lambda text: "",
                                    lambda text: text.replace("[[", "[[9", 1)])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: Callable[[str], str],
                                      capsys: pytest.CaptureFixture) -> None:
    """A run that was killed, or a disk, leaves a file that breaks every later run or changes what is
    taught."""
    cache, source = tmp_path / "pieces.json", RepositoryFiles(TRAIN, "data")
    first = source.find(REQUESTS[:3], 4, cache)
    whole = cache.read_bytes()
    cache.write_text(damage(cache.read_text()))
    assert source.find(REQUESTS[:3], 4, cache) == first
    assert cache.read_bytes() == whole
    assert "damaged; its pieces are looked for again" in capsys.readouterr().err


def test_a_killed_run_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an hour of looking, nothing is left after a kill."""
    cache, source = tmp_path / "pieces.json", RepositoryFiles(TRAIN, "data")
    monkeypatch.setattr(pipeline.retrieval.snippet_cache, "SAVE_SECONDS", -1)
    best, asked = Index.best, []

    def killed(self: Index, *args: Any) -> list[Place]:
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return best(self, *args)

    monkeypatch.setattr(Index, "best", killed)
    with pytest.raises(KeyboardInterrupt):
        source.find(REQUESTS, 4, cache)
    assert len(json.loads(cache.read_text())["found"]) == 3
    source.find(REQUESTS, 4, cache)
    assert len(asked) == len(REQUESTS) + 1


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture) -> None:
    """A data set on a read-only share cannot be trained on."""
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "pieces.json")

    monkeypatch.setattr(pipeline.retrieval.snippet_cache, "output_lock", refuse)
    source = RepositoryFiles(TRAIN, "data")
    assert source.find(REQUESTS, 4, tmp_path / "pieces.json")[0]
    assert "cannot be written; the pieces that are found are not kept" in capsys.readouterr().err


def test_files_without_a_path() -> None:
    """A data set from elsewhere ends in a traceback."""
    with pytest.raises(PipelineError, match="its files have no column path, repository"):
        RepositoryFiles(TRAIN.remove_columns(["repository", "path"]), "data")


def test_where_pieces_are_kept(tmp_path: Path) -> None:
    """The data set's own files change, and no longer are what its manifest says."""
    (tmp_path / "data").mkdir()
    assert cache_of(str(tmp_path / "data"), Path("models/adapter")) == tmp_path / "data.pieces.json"
    assert cache_of("owner/data", Path("models/adapter")) == Path("models/adapter.pieces.json")
    assert pieces_needed(512) > 512 // 128
