"""pipeline/preparation/splits.py: which side a file keeps from an earlier data set."""
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from preparation_runs import Prepared

from pipeline.data.clean_file import SPLITS


def name_files(folder: Path, names: list[str], repository: str = "https://h/r.git") -> None:
    """Write the provenance of a raw file."""
    rows = [{"repository": repository, "commit": "c", "path": name, "blob": "b", "license_file": None}
            for name in names]
    (folder / "raw.provenance.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sides(data: Prepared) -> dict[str, str]:
    return {row["path"]: split for split in SPLITS for row in data.files[split]}


def test_files_keep_their_sides(prepare: Callable[..., Prepared], texts: list[str],
                                kotlin_file: Callable[[int], str], tmp_path: Path) -> None:
    """After half a year of changes, a third of the new test had been in train: the model has seen it."""
    names = [f"src/F{n}.kt" for n in range(40)]
    name_files(tmp_path, names)
    old = sides(prepare(texts))
    # half of them are edited, a quarter moved, and there are new ones; the repository goes by another name
    new_texts = [text.replace("Int", "Long") + (kotlin_file(800 + n) if n % 4 == 0 else "") if n % 2 else text
                 for n, text in enumerate(texts)]
    new_names = [name.replace("src", "lib") if n % 4 == 1 else name for n, name in enumerate(names)]
    copies = [text.replace("return", "return 1 +") for text in texts]
    new_texts += [kotlin_file(900 + n) for n in range(20)] + copies
    new_names += [f"src/G{n}.kt" for n in range(20)] + [f"copy/F{n}.kt" for n in range(40)]
    name_files(tmp_path, new_names, "../r")
    found = sides(prepare(new_texts, "--seed", 3, "--keep_splits", tmp_path / "data", output="new"))
    for n, name in enumerate(new_names[:40]):
        assert found.get(name, old[names[n]]) == old[names[n]]  # one may be a duplicate of its copy
    for n in range(40):
        assert found.get(f"copy/F{n}.kt", old[names[n]]) == old[names[n]]
    assert {found[f"src/G{n}.kt"] for n in range(20)} == set(SPLITS)  # a hash decides on those


def test_without_it_edits_move_files(prepare: Callable[..., Prepared], texts: list[str],
                                     tmp_path: Path) -> None:
    """The test above shows nothing."""
    name_files(tmp_path, [f"F{n}" for n in range(40)])
    edited = [text.replace("Int", "Long") for text in texts]
    assert sides(prepare(texts)) != sides(prepare(edited, output="new"))


@pytest.mark.parametrize(("name", "message"), [("./nothing", "no such folder"),
                                               ("pairs", "holds no whole files")])
def test_what_gives_no_sides_is_one_line(name: str, message: str, prepare: Callable[..., Prepared],
                                         texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capfd: pytest.CaptureFixture) -> None:
    """A typing error splits everything anew, without a word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    with pytest.raises(SystemExit):
        prepare(texts[:4], "--keep_splits", name)
    assert f"--keep_splits {name}: {message}" in capfd.readouterr().err
