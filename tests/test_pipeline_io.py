"""pipeline_io.py: what the five stages rely on when they read, write, lock and fail."""
import argparse
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline_io
from pipeline_io import (
    FOLDER_MARKER,
    TEMPORARY,
    PipelineError,
    atomic_file,
    atomic_folder,
    check_local_model,
    check_manifest,
    check_replaceable,
    combined_hash,
    duration,
    encode_prompts,
    first_line,
    fraction,
    hash_files,
    lineage,
    load_examples,
    looks_like_path,
    manifest_path,
    non_negative_int,
    output_lock,
    positive_int,
    public_arguments,
    read_jsonl,
    read_manifest,
    recover_folder,
    redact,
    run_stage,
    sealed_manifest,
    sha256_file,
    write_json,
    write_manifest,
)

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def our_folder(path: Path, **files: str) -> Path:
    """Make a folder as a stage writes it."""
    path.mkdir(parents=True)
    for name, text in (files or {"data": "x"}).items():
        (path / name).write_text(text)
    write_manifest(path / "manifest.json", argparse.Namespace(), hash_files(path), 0.0)
    return path


# ---------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------

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
        check_replaceable(our_folder(tmp_path / "adapter", **{"adapter_config.json": "{}"}), "dataset_dict.json")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, pipeline_io.Terminated, OSError])
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


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, pipeline_io.Terminated])
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


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"manifest_version": 1}', '{"outputs": {}}', '{"name": "extension"}'])
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


def test_recover_folder_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    """A kill at the wrong moment loses the old result and the new one."""
    our_folder(tmp_path / ".out.pipeline-previous", data="old")
    recover_folder(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "data").read_text() == "old"


def test_recover_folder_after_a_kill_behind_the_renames(tmp_path: Path) -> None:
    """A kill at the wrong moment brings the old result back, or leaves it lying around."""
    our_folder(tmp_path / ".out.pipeline-previous", data="old")
    our_folder(tmp_path / "out", data="new")
    recover_folder(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "data").read_text() == "new"


def test_only_our_leftovers_are_swept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The sweep deletes the user's files, those of another output, or nothing."""
    ours = [f".a.jsonl{TEMPORARY}-1", f".a.jsonl{TEMPORARY}-22", f".a.jsonl{TEMPORARY}-6", f".a.jsonl{TEMPORARY}-7"]
    (tmp_path / ours[0]).write_text("x")
    (tmp_path / ours[2]).mkdir()  # killed just behind its mkdir
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


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_a_library_makes_another_error_of(number: str, code: int) -> None:
    """Ctrl-C during a load ends in a traceback, or as a damaged file."""
    for error in ("ValueError('could not determine the shape')", "pipeline_io.PipelineError('the file is damaged')"):
        program = ("import argparse, os, signal, sys, pipeline_io\ndef stage(args):\n    try:\n"
                   f"        os.kill(os.getpid(), signal.{number})\n        signal.pause()\n"
                   f"    except BaseException:\n        raise {error} from None\n"
                   "pipeline_io.run_stage(stage, argparse.Namespace())\n")
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # pytest in the background ignores it
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_a_folder_is_removed_in_which_a_child_still_writes(tmp_path: Path) -> None:
    """Ctrl-C during a clone ends in a traceback, because git has not ended when its folder is removed."""
    folder = tmp_path / "clone"
    (folder / "0").mkdir(parents=True)
    code = "import sys, time\nfor i in range(200): open(sys.argv[1] + f'/{i}', 'w').close(); time.sleep(0.002)"
    writer = subprocess.Popen([sys.executable, "-c", code, str(folder / "0")], stderr=subprocess.DEVNULL)
    while not any((folder / "0").iterdir()):
        time.sleep(0.001)
    pipeline_io.remove_folder(folder)
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
    code = ("import sys; from pathlib import Path; from pipeline_io import output_lock, PipelineError\n"
            "try:\n    with output_lock(Path(sys.argv[1])): print('free')\nexcept PipelineError as error: print(error)\n")

    def attempt() -> str:
        return subprocess.run([sys.executable, "-c", code, tmp_path / "a"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with output_lock(tmp_path / "a"):
        assert "another process is writing this output" in attempt()
        with output_lock(tmp_path / "b"):  # another output is free
            pass
    assert attempt() == "free\n"


# ---------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------

@given(rows=st.lists(st.fixed_dictionaries({"text": st.text()})))
def test_jsonl_reads_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    """Text changes between two stages."""
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    assert list(read_jsonl(path, {"text": str})) == rows


@pytest.mark.parametrize(("line", "message"), [
    (b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"1", "not a JSON object"), (b"null", "not a JSON object"),
    (b"{}", "no field 'text'"), (b'{"text": []}', "'text' is not of type str"), (b'{"text": "\\udc00"}', "lone surrogate"),
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


@pytest.fixture(scope="module")
def make_examples(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a small data set folder with its manifest."""
    import datasets

    def make(columns: tuple[str, ...] = ("prompt", "completion"), splits: tuple[str, ...] = ("train", "test")) -> Path:
        datasets.disable_progress_bars()
        folder = tmp_path_factory.mktemp("examples") / "data"
        rows = {column: ["val a", "val b"] for column in columns}
        datasets.DatasetDict({split: datasets.Dataset.from_dict(rows) for split in splits}).save_to_disk(str(folder))
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


# ---------------------------------------------------------------------------------------------------------------
# Manifests
# ---------------------------------------------------------------------------------------------------------------

def test_check_manifest_of_a_folder(tmp_path: Path) -> None:
    """A changed or missing file of a model or data set goes unnoticed."""
    path = our_folder(tmp_path / "out", a="1", b="2")
    assert check_manifest(path)["outputs"] == hash_files(path)
    (path / "a").write_text("2")
    with pytest.raises(PipelineError, match="a: has changed"):
        check_manifest(path)
    (path / "a").unlink()
    with pytest.raises(PipelineError, match="a: is missing"):
        check_manifest(path)


def test_check_manifest_of_a_file(tmp_path: Path) -> None:
    """A raw file that was cut short goes unnoticed."""
    path = tmp_path / "a.jsonl"
    path.write_text("1\n")
    assert check_manifest(path) is None
    write_manifest(manifest_path(path), argparse.Namespace(), hash_files(path), 0.0)
    assert manifest_path(path).name == "a.manifest.json"
    assert check_manifest(path)["outputs"] == {"a.jsonl": sha256_file(path)}
    path.write_text("")
    with pytest.raises(PipelineError, match="has changed"):
        check_manifest(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"outputs": []}'])
def test_a_damaged_manifest_is_named(content: str, tmp_path: Path) -> None:
    """A damaged manifest gives a traceback, or switches the checks off."""
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(PipelineError, match=r"manifest\.json: "):
        read_manifest(tmp_path)


def test_a_manifest_says_what_made_the_output(tmp_path: Path) -> None:
    """A result cannot be traced to the settings and versions that made it, or holds a password."""
    args = argparse.Namespace(repo_url=["https://u:p@h/x"], path=Path("a"), number=3, none=None)
    write_manifest(tmp_path / "m.json", args, {"a": "0"}, 0.0, counts={"kept": 1})
    manifest = json.loads((tmp_path / "m.json").read_bytes())
    assert manifest["arguments"] == {"repo_url": ["https://***@h/x"], "path": "a", "number": 3, "none": None}
    assert manifest["counts"] == {"kept": 1}
    assert manifest["outputs"] == {"a": "0"}
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"stage", "created", "seconds", "manifest_version"} <= set(manifest)


def test_hashes_depend_on_names_and_content_only(tmp_path: Path) -> None:
    """Two equal results have different identities, or two different ones the same."""
    first, second, third = (our_folder(tmp_path / name, **files) for name, files in
                            (("1", {"a": "1", "b": "2"}), ("2", {"b": "2", "a": "1"}), ("3", {"a": "2", "b": "1"})))
    assert combined_hash(hash_files(first)) == combined_hash(hash_files(second)) != combined_hash(hash_files(third))
    assert "manifest.json" not in hash_files(first)


def test_write_json_is_readable_text(tmp_path: Path) -> None:
    """A manifest cannot be read by a person."""
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'


# ---------------------------------------------------------------------------------------------------------------
# Lineage
# ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the outputs of all five stages as they lie on the disk, each with a file or two."""
    monkeypatch.chdir(tmp_path)

    def write(script: str, place: str, files: tuple[str, ...], arguments: dict[str, str], **details: object) -> dict | None:
        monkeypatch.setattr(sys, "argv", [f"{script}.py"])
        folder = Path(place) if files else Path(place).parent
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            (folder / name).write_text(f"{place} {name}")
        if not files:
            Path(place).write_text(place)
        write_manifest(manifest_path(Path(place)), argparse.Namespace(**arguments), hash_files(Path(place)), 0.0, **details)
        return read_manifest(Path(place))

    source = {"repository": "https://example.org/code.git", "commit": "c0ffee", "license_file": None}
    write("parse_data", "data/raw.jsonl", (), {"repo_url": "x"}, sources=[source])
    data = write("preprocess_data", "data/set", ("train.arrow",), {"input_file": "data/raw.jsonl", "model_name_or_path": "m"},
                 inputs={"raw.jsonl": sha256_file(Path("data/raw.jsonl"))}, sources=[source])
    adapter = write("train", "models/adapter", ("adapter_model.safetensors",), {"dataset": "data/set", "model_name_or_path": "owner/base"},
                    dataset_manifest=data)
    merged = write("merge_lora", "models/merged", ("model.safetensors",), {"hf_repository": "models/adapter"}, base_model="owner/base",
                   inputs={"adapter_model.safetensors": adapter["outputs"]["adapter_model.safetensors"]}, adapter_manifest=adapter)
    write("benchmarking", "results", ("table.md",), {"hf_repository": "models/merged", "base_model": "owner/base", "dataset": "data/set"},
          fine_tuned_manifest=merged, dataset_manifest=data)
    return tmp_path


STEPS = [("results", "benchmarking.py"), ("models/merged", "merge_lora.py"), ("models/adapter", "train.py"),
         ("data/set", "preprocess_data.py"), ("data/raw.jsonl", "parse_data.py")]


@pytest.mark.parametrize(("path", "first"), [("results", 0), ("results/table.md", 0), ("models/merged", 1), ("models/adapter", 2),
                                             ("data/set", 3), ("data/raw.jsonl", 4)])
def test_lineage_goes_back_to_the_source_commit(path: str, first: int, chain: Path) -> None:
    """Nobody can say which code a model or a table goes back to, or a stage is told twice."""
    *stages, source = lineage(Path(path))
    assert [tuple(line.split("  ")[:2]) for line, _ in stages] == STEPS[first:]
    assert all("files match" in line and not change for line, change in stages)
    assert source == ("https://example.org/code.git  commit c0ffee", False)


def test_a_line_of_lineage_tells_all(chain: Path) -> None:
    """A line lacks the date, the hash or the origin."""
    (line, _), *_ = lineage(Path("models/merged"))
    manifest = read_manifest(Path("models/merged"))
    assert line.split("  ") == ["models/merged", "merge_lora.py", manifest["created"][:10],
                                f"sha256 {combined_hash(manifest['outputs'])[:12]}…", "files match",
                                "from models/adapter, base model owner/base"]


@pytest.mark.parametrize(("damage", "place", "message"), [
    (lambda: Path("models/adapter/adapter_model.safetensors").write_text("x"), "models/adapter", "CHANGED: adapter_model.safetensors"),
    (lambda: Path("data/set/train.arrow").unlink(), "data/set", "MISSING: train.arrow"),
    (lambda: Path("data/raw.jsonl").write_text("x"), "data/raw.jsonl", "CHANGED: raw.jsonl"),
    (lambda: write_manifest(Path("models/adapter/manifest.json"), argparse.Namespace(), {"adapter_model.safetensors": "0"}, 0.0),
     "models/adapter", "WRITTEN AGAIN"),
    (lambda: write_manifest(Path("data/raw.manifest.json"), argparse.Namespace(), {"raw.jsonl": "0"}, 0.0),
     "data/raw.jsonl", "WRITTEN AGAIN"),
])
def test_lineage_tells_what_has_changed(damage: Callable[[], object], place: str, message: str, chain: Path,
                                        capsys: pytest.CaptureFixture) -> None:
    """A model is traced to a file that is not the one that it was made from."""
    damage()
    told = list(lineage(Path("results")))
    (changed,) = (line for line, change in told if change)
    assert changed.startswith(place)
    assert message in changed
    assert "c0ffee" in told[-1][0]  # the code base is known all the same
    with pytest.raises(SystemExit) as stop:
        pipeline_io.main(["--lineage", "results"])
    assert stop.value.code == 1
    assert "1 of its stages no longer match" in capsys.readouterr().err


def test_a_data_set_that_was_written_again_with_the_same_rows(chain: Path) -> None:
    """The same data set once more counts as another one, because a file beside its rows differs."""
    adapter, data = read_manifest(Path("models/adapter")), read_manifest(Path("data/set"))
    write_json(Path("models/adapter/manifest.json"), sealed_manifest(adapter | {"dataset_manifest": data | {"data_hash": "rows"}}))
    Path("data/set/state.json").write_text("other")
    outputs = hash_files(Path("data/set"))
    write_json(Path("data/set/manifest.json"), sealed_manifest(data | {"data_hash": "rows", "outputs": outputs}))
    assert not any(change for _, change in lineage(Path("models/adapter")))


def test_a_manifest_that_was_changed_is_noticed(tmp_path: Path) -> None:
    """A flipped bit in a manifest changes a budget, or the origin that is published, and nobody is told."""
    write_manifest(tmp_path / "manifest.json", argparse.Namespace(chunk_tokens=100), {}, 0.0, counts={3: float("nan")}, pair=(1, 2))
    assert read_manifest(tmp_path)["arguments"] == {"chunk_tokens": 100}
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"chunk_tokens": 100', '"chunk_tokens": 108'))
    with pytest.raises(PipelineError, match="has changed since it was written"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("place", ["models/adapter", "data/set", "data/raw.jsonl"])
def test_lineage_where_an_input_is_no_longer_there(place: str, chain: Path) -> None:
    """A link that cannot be followed passes for checked, or ends the story."""
    path = Path(place)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = list(lineage(Path("results")))
    (line,) = (line for line, _ in told if line.startswith(place))
    assert "is not here" in line
    assert not any(change for _, change in told)
    assert "c0ffee" in told[-1][0]


@pytest.mark.parametrize("manifest", [
    {"outputs": {}, "arguments": 3, "stage": "train"},
    {"outputs": {}, "stage": "train", "arguments": {"dataset": "data/set"}, "dataset_manifest": [1], "sources": [2]},
    {"outputs": {}, "stage": "merge_lora", "arguments": {"hf_repository": "a"},
     "adapter_manifest": {"outputs": {"\x1b[2J": 1}, "stage": "\x1b[2J", "created": 4}},
    {"outputs": {}, "stage": "preprocess_data", "sources": [{"repository": "https://u:secret@h/\x1b[2J"}]},
])
def test_lineage_of_a_manifest_from_elsewhere(manifest: dict, tmp_path: Path) -> None:
    """A manifest of somebody else ends in a traceback, writes to the terminal, or shows a password."""
    write_json(tmp_path / "manifest.json", manifest)
    told = "".join(line for line, _ in lineage(tmp_path))
    assert "\x1b" not in told
    assert "secret" not in told


def test_lineage_of_something_else(chain: Path) -> None:
    """A file that no stage wrote is given the origin of its neighbours."""
    Path("results/notes.md").write_text("x")
    for path in ("results/notes.md", "models", "nothing"):
        with pytest.raises(PipelineError, match="no manifest tells where it comes from"):
            list(lineage(Path(path)))


# ---------------------------------------------------------------------------------------------------------------
# Small functions
# ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "shown"), [
    ("https://user:secret@host/x.git", "https://***@host/x.git"),
    ("https://user:a@secret@host/x.git", "https://***@host/x.git"),
    ("fatal: 'http://secret@127.0.0.1:9/x.git/': no", "fatal: 'http://***@127.0.0.1:9/x.git/': no"),
    ("http://a:secret@h/x http://b:secret@h/y", "http://***@h/x http://***@h/y"),
    ("token hf_" + "a" * 34, "token hf_***"),
    ("https://host/a@b and git@host:x.git", "https://host/a@b and git@host:x.git"),
    ("--hf_repository=owner/name", "--hf_repository=owner/name"),
    ("the own token", "the own token"),
    ("my-own-secret", "***"),
])
def test_redact(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password or token is printed, or harmless text is mangled."""
    monkeypatch.setenv("HF_TOKEN", "my-own-secret")
    assert redact(text) == shown


@given(user=st.from_regex(r"[a-z]{3,9}", fullmatch=True), password=st.from_regex(r"[A-Z0-9@:!$%&]{6,12}", fullmatch=True))
def test_no_password_survives(user: str, password: str) -> None:
    """A password with odd characters is printed in part."""
    shown = redact(f"cannot read https://{user}:{password}@example.org/x.git: no")
    assert shown == "cannot read https://***@example.org/x.git: no"


def test_public_arguments_are_json(tmp_path: Path) -> None:
    """The manifest cannot be written."""
    args = argparse.Namespace(a=tmp_path, b=(1, "x"), c=[Path("y")], d=None, e=True, f=0.5)
    assert json.loads(json.dumps(public_arguments(args))) == {"a": str(tmp_path), "b": [1, "x"], "c": ["y"], "d": None, "e": True, "f": 0.5}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0.0 s"), (4.24, "4.2 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")])
def test_duration(seconds: float, text: str) -> None:
    """The time shown is not the time taken."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("kind", "good", "bad"), [
    (fraction, ["0", "0.5", "0.999"], ["1", "-0.1", "nan", "x"]),
    (positive_int, ["1", "10"], ["0", "-1", "1.5", ""]),
    (non_negative_int, ["0", "1"], ["-1", "x"]),
])
def test_argument_types(kind: Callable, good: list[str], bad: list[str]) -> None:
    """A senseless number is accepted and fails hours later."""
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            kind(text)


@pytest.mark.parametrize(("name", "path"), [("./a", True), ("/a/b", True), ("~/a", True), ("../a", True), ("a/b/c", True),
                                            ("owner/name", False), ("name", False), ("owner/name-1.5", False)])
def test_looks_like_path(name: str, path: bool) -> None:
    """A local path is looked up on the hub, or a hub name in the folder."""
    assert looks_like_path(name) == path


def test_first_line() -> None:
    """An error message of many lines fills the screen, or an empty one says nothing."""
    assert first_line(ValueError("\n  what \nwhere")) == "what"
    assert first_line(KeyError()) == "KeyError"


def test_check_local_model(tmp_path: Path) -> None:
    """A wrong folder gives the traceback of a library."""
    for name, message in ((str(tmp_path / "nothing"), "no such folder"), (str(tmp_path), "holds neither config.json")):
        with pytest.raises(PipelineError, match=message):
            check_local_model(name)
    (tmp_path / "adapter_config.json").write_text("{}")
    check_local_model(str(tmp_path))
    check_local_model("owner/name-of-a-hub-model")


class WordTokenizer:
    """A tokenizer that puts token 1 before a text and, with `end`, token 2 behind it."""
    eos_token_id = 2

    def __init__(self, end: bool):
        self.end = [2] if end else []

    def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
        assert options == {"return_attention_mask": False, "split_special_tokens": True}
        return {"input_ids": [[1, *map(ord, text), *self.end] for text in texts]}


@pytest.mark.parametrize("end", [True, False])
def test_encode_prompts_leaves_the_end_open(end: bool) -> None:
    """The model sees an end-of-text token between prompt and completion."""
    assert encode_prompts(WordTokenizer(end), ["a", ""]) == [[1, 97], [1]]
    assert encode_prompts(WordTokenizer(end), []) == []


# ---------------------------------------------------------------------------------------------------------------
# Running a stage
# ---------------------------------------------------------------------------------------------------------------

def stop_with(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def stage(args: argparse.Namespace) -> None:
        raise error
    return stage


@pytest.mark.parametrize(("error", "code", "message"), [
    (PipelineError("no such\n  file"), 1, "error: no such file"),
    (PipelineError("https://u:secret@h/x"), 1, "error: https://***@h/x"),
    (KeyboardInterrupt(), 130, "interrupted; no output was left half written"),
    (pipeline_io.Terminated(), 143, "terminated; no output was left half written"),
    (OSError(errno.ENOSPC, "x", "out/a"), 1, "error: out/a: no space left on the disk"),
    (OSError(errno.EFBIG, "x"), 1, "error: the file would exceed the file size limit"),
    (PermissionError(errno.EACCES, "x", "a"), 1, "error: a: permission denied"),
])
def test_exit_codes(error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script cannot tell what happened, or the user reads a traceback."""
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    with pytest.raises(SystemExit) as stop:
        run_stage(stop_with(error), argparse.Namespace(a=1))
    assert stop.value.code == code
    settings, line = capsys.readouterr().err.splitlines()
    assert settings == "stage.py: a=1"
    assert line.startswith(f"stage.py: {message}")


@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EBADF, "bug"), KeyError("bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    """A bug of ours is reported as a mistake of the user and cannot be found."""
    with pytest.raises(type(error), match="bug"):
        run_stage(stop_with(error), argparse.Namespace())


def test_sigterm_runs_every_finally() -> None:
    """`kill` leaves temporary files behind."""
    done: list[str] = []

    def stage(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(10)
        finally:
            done.append("cleaned")
    with pytest.raises(SystemExit) as stop:
        run_stage(stage, argparse.Namespace())
    assert stop.value.code == 143
    assert done == ["cleaned"]


# ---------------------------------------------------------------------------------------------------------------
# A full disk
# ---------------------------------------------------------------------------------------------------------------

def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.usefixtures("plain_git")
def test_a_full_disk_in_stage_1(tmp_path: Path, run_script: Callable, error_line: Callable[[str], str]) -> None:
    """A full disk destroys the old raw file, leaves half a new one, or shows a traceback."""
    for i in range(5):
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / f"{i}.kt").write_text(f"val a{i} = 1\n" * 3000)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "raw.jsonl").write_text("previous\n")
    result = run_script("parse_data.py", "--repo_url", "code", "--clone_path", "clone", "--output_file", "out/raw.jsonl",
                        preexec_fn=limit_file_size)
    assert result.returncode == 1
    assert "file size limit" in error_line(result.stderr)
    assert names(tmp_path / "out") == [".raw.jsonl.lock", "raw.jsonl"]
    assert (tmp_path / "out" / "raw.jsonl").read_text() == "previous\n"
    assert not (tmp_path / "clone").exists()


@pytest.mark.parametrize("functions", [400, 7])
def test_a_full_disk_in_stage_2(functions: int, tmp_path: Path, run_script: Callable, error_line: Callable[[str], str],
                                tokenizer_folder: Path, kotlin_file: Callable[..., str]) -> None:
    """A full disk destroys the old data set, leaves half a new one, or shows a traceback: while cleaning, and while writing."""
    with open(tmp_path / "raw.jsonl", "w") as raw:
        for number in range(30):
            raw.write(json.dumps({"file_text": kotlin_file(number, functions)}) + "\n")
    before = hash_files(our_folder(tmp_path / "data", **{"dataset_dict.json": "old"}))
    result = run_script("preprocess_data.py", "--input_file", "raw.jsonl", "--output_dir", "data", "--num_proc", 1, "--model_name_or_path",
                        tokenizer_folder, "--validation_fraction", 0.2, "--test_fraction", 0.2, "--chunk_tokens", 60,
                        "--stride_tokens", 2, preexec_fn=limit_file_size)
    assert result.returncode == 1, result.stderr
    assert "file size limit" in error_line(result.stderr)
    assert hash_files(tmp_path / "data") == before
    assert names(tmp_path) == [".data.lock", "data", "raw.jsonl"]
