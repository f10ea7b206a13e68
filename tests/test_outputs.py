"""pipeline/run/outputs.py: outputs appear whole or not at all, one writer at a time; hashes; JSON lines."""
import argparse
import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from output_folders import names, our_folder

from pipeline.run import outputs
from pipeline.run.errors import PipelineError, Terminated
from pipeline.run.hashes import combined_hash, hash_files
from pipeline.run.jsonl import read_jsonl
from pipeline.run.manifests import check_manifest, write_manifest
from pipeline.run.outputs import (
    FOLDER_MARKER,
    TEMPORARY,
    atomic_file,
    atomic_folder,
    check_data_set_path,
    check_replaceable,
    output_lock,
    recover_folder,
    remove_folder,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


def test_a_file_that_a_user_added_to_an_output_is_not_deleted(tmp_path: Path) -> None:
    """A user's notes beside a model vanish when the model is written again."""
    folder = our_folder(tmp_path / "model", **{"config.json": "{}"})
    check_replaceable(folder, "config.json")
    (folder / "cache-0123.arrow").touch()  # what datasets leaves in a data set folder
    check_replaceable(folder, "config.json")
    (folder / "notes.txt").touch()
    with pytest.raises(PipelineError, match=r"notes\.txt"):
        check_replaceable(folder, "config.json")


def test_the_output_of_another_stage_is_not_replaced(tmp_path: Path) -> None:
    """preprocess_data.py --output_dir with an adapter's folder replaces hours of training."""
    with pytest.raises(PipelineError, match="is not an output of this script"):
        check_replaceable(our_folder(tmp_path / "adapter", **{"adapter_config.json": "{}"}),
                          "dataset_dict.json")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Terminated, OSError])
def test_atomic_file_keeps_the_old_content(error: type[BaseException], tmp_path: Path) -> None:
    """A run that fails half-way destroys the result of the run before."""
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_file(path) as file:
            file.write("new")
            file.flush()
            raise error
    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    """A reader sees half a file."""
    path = tmp_path / "new" / "a.bin"
    with atomic_file(path, binary=True) as file:
        file.write(b"\r\n\xff")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"\r\n\xff"
    assert names(path.parent) == ["a.bin"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    """A stage that reads while another writes gets half of each."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    with open(path) as reader:
        with atomic_file(path) as file:
            file.write("new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    """The bytes depend on the machine's locale."""
    with atomic_file(tmp_path / "a") as file:
        file.write("ä\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Terminated])
def test_atomic_folder_keeps_the_old_content(error: type[BaseException], tmp_path: Path) -> None:
    """A run that fails half-way destroys the model or data set of the run before."""
    path = our_folder(tmp_path / "out", data="old")
    before = hash_files(path)

    def write() -> None:
        with atomic_folder(path) as folder:
            (folder / "data").write_text("new")
            raise error
    with pytest.raises(error):
        write()
    assert hash_files(path) == before
    assert names(tmp_path) == ["out"]


def test_atomic_folder_replaces_the_whole_folder(tmp_path: Path) -> None:
    """Files of the old result are mixed into the new one."""
    path = our_folder(tmp_path / "out", old="old")
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "new").write_text("new")
        write_manifest(folder / "manifest.json", argparse.Namespace(), hash_files(folder), 0.0)
        assert names(path) == ["manifest.json", "old"]
    assert names(path) == ["manifest.json", "sub"]
    assert names(tmp_path) == ["out"]
    check_manifest(path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"manifest_version": 1}', '{"outputs": {}}',
                                     '{"name": "extension"}'])
def test_a_foreign_folder_is_not_replaced(content: str, tmp_path: Path) -> None:
    """The user's own folder is deleted because it holds some manifest.json."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text(content)
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(PipelineError, match="did not write"), atomic_folder(tmp_path / "mine"):
        pass
    assert names(tmp_path / "mine") == ["manifest.json", "thesis.txt"]
    assert names(tmp_path) == ["mine"]


def test_what_may_be_replaced(tmp_path: Path) -> None:
    """A second run is refused, or a file or a linked folder is overwritten."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(our_folder(tmp_path / "ours"))
    for good in ("missing", "empty", "ours"):
        check_replaceable(tmp_path / good)
    for bad in ("file", "link"):
        with pytest.raises(PipelineError, match="is not a folder"):
            check_replaceable(tmp_path / bad)


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "../here", "/"])
def test_the_current_folder_is_not_replaced(name: str, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """`--output_dir .` ends in a traceback, or the shell stands in a folder that is gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(PipelineError, match="is the current folder, or holds it"):
        check_replaceable(Path(name))
    assert names(tmp_path / "here") == []


@pytest.mark.parametrize("name", [".", "..", "sub/.."])
def test_an_output_has_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--output_file .` ends in a traceback, or leaves files with odd names."""
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(PipelineError, match="needs a name of its own"), output_lock(Path(name)):
        pass
    with pytest.raises(PipelineError, match="needs a name of its own"), atomic_file(Path(name)):
        pass
    assert names(tmp_path) == ["here"]
    assert names(tmp_path / "here") == ["sub"]


def test_a_data_set_path_that_means_another_place() -> None:
    """--output_dir ./a::b writes the data set into the folder `a:`, and says that it is in `a::b`."""
    with pytest.raises(PipelineError, match="choose a path without it"):
        check_data_set_path(Path("./a::b"))
    check_data_set_path(Path("a:b"))


@pytest.mark.parametrize("what", ["folders", "anything"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync(number: int, what: str, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture) -> None:
    """On some network drives every stage ends in a traceback, after its work."""
    def fsync(descriptor: int) -> None:
        if what == "anything" or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(outputs, "_warned", set())
    for _ in range(2):
        with atomic_file(tmp_path / "a") as file:
            file.write("x")
        with atomic_folder(tmp_path / "b") as folder:
            (folder / "c").mkdir()
            write_manifest(folder / "manifest.json", argparse.Namespace(), {}, 0.0)
    assert names(tmp_path) == ["a", "b"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not say when what was written is safe" in line


def test_another_fault_of_a_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails passes for one that cannot sync, and the output for written."""
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"), atomic_file(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_names_that_are_not_utf8_are_read_as_they_were(tmp_path: Path) -> None:
    """A manifest cannot be written of a file whose name is in an old encoding, or names another."""
    name = os.fsdecode(b"r\xe9.txt")
    (tmp_path / name).write_text("x")
    args = argparse.Namespace(input_file=tmp_path / name)
    write_manifest(tmp_path / "manifest.json", args, hash_files(tmp_path), 0.0)
    (tmp_path / "manifest.json").read_text(encoding="utf-8")
    manifest = check_manifest(tmp_path)
    assert list(manifest["outputs"]) == [name]
    assert manifest["arguments"]["input_file"] == str(tmp_path / name)


def test_recover_folder_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    """A kill at the wrong moment loses the old result and the new one."""
    our_folder(tmp_path / ".out.pipeline-previous", data="old")
    recover_folder(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "data").read_text() == "old"


def test_recover_folder_after_a_kill_after_the_renames(tmp_path: Path) -> None:
    """A kill at the wrong moment brings the old result back, or leaves it lying around."""
    our_folder(tmp_path / ".out.pipeline-previous", data="old")
    our_folder(tmp_path / "out", data="new")
    recover_folder(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "data").read_text() == "new"


def test_only_our_leftovers_are_swept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The sweep deletes the user's files, those of another output, or nothing."""
    ours = [f".a.jsonl{TEMPORARY}-1", f".a.jsonl{TEMPORARY}-22", f".a.jsonl{TEMPORARY}-6",
            f".a.jsonl{TEMPORARY}-7"]
    (tmp_path / ours[0]).write_text("x")
    (tmp_path / ours[2]).mkdir()  # killed just after its mkdir
    our_folder(tmp_path / ours[3], data="complete")  # killed just before its rename
    (tmp_path / ours[1]).mkdir()
    (tmp_path / ours[1] / FOLDER_MARKER).touch()
    (tmp_path / "target").write_text("x")
    (tmp_path / f".a.jsonl{TEMPORARY}-3").symlink_to(tmp_path / "target")
    (tmp_path / f".a.jsonl{TEMPORARY}-4").mkdir()
    (tmp_path / f".a.jsonl{TEMPORARY}-4" / "mine").touch()  # and no marker
    (tmp_path / f".b.jsonl{TEMPORARY}-5").write_text("x")
    (tmp_path / "a.jsonl.tmp").write_text("x")
    before = set(names(tmp_path))
    with output_lock(tmp_path / "a.jsonl"):
        pass
    assert set(names(tmp_path)) == before - set(ours) | {".a.jsonl.lock"}
    assert capsys.readouterr().err.count("left by a run that was killed") == 4


def test_a_folder_is_removed_in_which_a_child_still_writes(tmp_path: Path) -> None:
    """Ctrl-C during a clone ends in a traceback, because git has not ended when its folder is removed."""
    folder = tmp_path / "clone"
    (folder / "0").mkdir(parents=True)
    code = ("import sys, time\n"
            "for i in range(200): open(sys.argv[1] + f'/{i}', 'w').close(); time.sleep(0.002)")
    writer = subprocess.Popen([sys.executable, "-c", code, str(folder / "0")], stderr=subprocess.DEVNULL)
    while not any((folder / "0").iterdir()):
        time.sleep(0.001)
    remove_folder(folder)
    writer.wait()
    assert not folder.exists()


def test_leftovers_of_a_name_with_wildcards(tmp_path: Path) -> None:
    """An output called `*` sweeps what another output is writing; one called `[1]` is never swept."""
    (tmp_path / f".other{TEMPORARY}-1").write_text("x")
    (tmp_path / f".[1]{TEMPORARY}-1").write_text("x")
    with output_lock(tmp_path / "*"), output_lock(tmp_path / "[1]"):
        pass
    assert set(names(tmp_path)) == {".*.lock", f".other{TEMPORARY}-1", ".[1].lock"}


def test_output_lock_refuses_a_second_process(tmp_path: Path) -> None:
    """Two runs write the same output at once and mix it up."""
    code = ("import sys; from pathlib import Path; from pipeline.run.errors import PipelineError; "
            "from pipeline.run.outputs import output_lock\n"
            "try:\n    with output_lock(Path(sys.argv[1])): print('free')\n"
            "except PipelineError as error: print(error)\n")

    def attempt() -> str:
        return subprocess.run([sys.executable, "-c", code, tmp_path / "a"], cwd=ROOT, capture_output=True,
                              text=True, check=True).stdout
    with output_lock(tmp_path / "a"):
        assert "another process is writing this output" in attempt()
        with output_lock(tmp_path / "b"):  # another output is free
            pass
    assert attempt() == "free\n"


# ------------------------------------------------------------------------------------------------------------
# JSON lines, hashes
# ------------------------------------------------------------------------------------------------------------

@given(rows=st.lists(st.fixed_dictionaries({"text": st.text()})))
def test_jsonl_reads_what_was_written(tmp_path_factory: pytest.TempPathFactory,
                                      rows: list[dict[str, str]]) -> None:
    """Text changes between two stages."""
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8",
                    newline="\n")
    assert list(read_jsonl(path, {"text": str})) == rows


@pytest.mark.parametrize(("line", "message"), [
    (b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"1", "not a JSON object"),
    (b"null", "not a JSON object"), (b"{}", "no field 'text'"),
    (b'{"text": []}', "'text' is not of type str"), (b'{"text": "\\udc00"}', "lone surrogate"),
    (b'{"text": ' + b"9" * 5000 + b"}", "not valid JSON")])
def test_jsonl_errors_name_file_and_line(line: bytes, message: str, tmp_path: Path) -> None:
    """A damaged line cannot be found."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    rows = read_jsonl(path, {"text": str})
    assert next(rows) == {"text": "a"}
    with pytest.raises(PipelineError, match=f"a.jsonl, line 2: .*{message}"):
        next(rows)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A typing error in a path gives a traceback."""
    with pytest.raises(PipelineError, match=r"nothing\.jsonl: no such file"):
        next(read_jsonl(tmp_path / "nothing.jsonl", {}))


def test_hashes_depend_on_names_and_content_only(tmp_path: Path) -> None:
    """Two equal results have different identities, or two different ones the same."""
    first, second, third = (hash_files(our_folder(tmp_path / name, **files)) for name, files in
                            (("1", {"a": "1", "b": "2"}), ("2", {"b": "2", "a": "1"}),
                             ("3", {"a": "2", "b": "1"})))
    assert combined_hash(first) == combined_hash(second) != combined_hash(third)
    assert "manifest.json" not in first


def test_write_json_is_readable_text(tmp_path: Path) -> None:
    """A manifest cannot be read by a person."""
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'
