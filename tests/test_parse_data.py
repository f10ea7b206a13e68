"""parse_data.py: which files it reads, what it says about them, and what it leaves behind."""
import base64
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parse_data
from parse_data import CLONE_MARKER, blob_id, decode_source, find_license, split_credentials

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("plain_git")
MAIN = b"fun main() {\n    println(1)\n}\n"


class Repository:
    """A small git repository, made with the git command."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("config", "uploadpack.allowFilter", "true")  # as the large servers do

    def git(self, *arguments: str) -> str:
        return subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "core.autocrlf=false", *arguments],
                              cwd=self.path, check=True, capture_output=True, text=True, errors="surrogateescape").stdout.strip()

    def commit(self, files: dict[str, bytes] | None = None) -> str:
        for name, data in (files or {}).items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "c")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "code")


class Result:
    """The three files that a run wrote."""

    def __init__(self, output: Path):
        provenance = output.with_name(f"{output.stem}.provenance.jsonl")
        self.raw = [json.loads(line) for line in output.read_bytes().splitlines()]
        self.texts = [row["file_text"] for row in self.raw]
        self.provenance = [json.loads(line) for line in provenance.read_bytes().splitlines()]
        self.paths = [row["path"] for row in self.provenance]
        self.manifest = json.loads(output.with_name(f"{output.stem}.manifest.json").read_bytes())
        self.skipped = {reason: paths for reason, paths in self.manifest["sources"][0]["skipped"].items() if paths}
        self.bytes = output.read_bytes() + provenance.read_bytes()


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs the stage in this process and returns what it wrote; the clone must be gone afterwards."""
    monkeypatch.setattr(sys, "argv", ["parse_data.py"])
    monkeypatch.setattr(parse_data, "FIRST_DELAY_SECONDS", 0)

    def run(*locations: object, options: tuple = (), output: str = "out/raw.jsonl") -> Result:
        arguments = [*(f"--repo_url={x}" if str(x).startswith("-") else x for x in locations)]
        if not str(arguments[0]).startswith("--repo_url="):
            arguments.insert(0, "--repo_url")
        try:
            parse_data.main([*map(str, arguments), *map(str, options), "--clone_path", str(tmp_path / "clone"),
                             "--output_file", str(tmp_path / output)])
        finally:
            assert not (tmp_path / "clone").exists()
        return Result(tmp_path / output)
    return run


@pytest.fixture
def failure(parse: Callable[..., Result], capfd: pytest.CaptureFixture, error_line: Callable[[str], str],
            tmp_path: Path) -> Callable[..., str]:
    """Return a function that expects the stage to fail; it returns the line that says why, and nothing may be left behind."""
    def run(*locations: object, options: tuple = (), hidden: str = "\0") -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            parse(*locations, options=options)
        assert stop.value.code == 1
        captured = capfd.readouterr()
        assert hidden not in captured.err + captured.out
        left = {p.name for p in (tmp_path / "out").iterdir()} - {".raw.jsonl.lock"}
        assert left in (set(), {"raw.jsonl", "raw.provenance.jsonl", "raw.manifest.json"})
        return error_line(captured.err)
    return run


# ---------------------------------------------------------------------------------------------------------------
# One file
# ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("data", "text", "reason"), [
    (b"val a = 1\n", "val a = 1\n", None),
    (b"\xef\xbb\xbfval a = 1\n", "val a = 1\n", None),
    (b"a\r\nb\r\n", "a\nb\n", None),
    (b"a\rb\r", "a\nb\n", None),
    (b"a\r\n\rb", "a\n\nb", None),
    ("val ä = \"\u2028\U0001f600\"".encode(), "val ä = \"\u2028\U0001f600\"", None),
    (b"", None, "empty"),
    (b" \r\n\t\n", None, "empty"),
    (b"\xef\xbb\xbf", None, "empty"),
    (b"val s = \"\xe4\"", None, "not UTF-8"),
    ("val a".encode("utf-16"), None, "NUL bytes"),
    (b"a\0b", None, "NUL bytes"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", None, "LFS pointer"),
    (b"x" * 101, None, "larger than --max_file_bytes"),
    (b"x" * 100, "x" * 100, None),
])
def test_decode_source(data: bytes, text: str | None, reason: str | None) -> None:
    """A file is read wrongly, or dropped for the wrong reason."""
    assert decode_source(data, 100) == (text, reason)


@given(st.text())
def test_decoding_changes_nothing_but_line_ends_and_bom(text: str) -> None:
    """Characters of a source file get lost."""
    decoded, reason = decode_source(text.encode(), 10**9)
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert decoded == expected if reason is None else (not expected.strip() or "\0" in text)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_given_a_reason(data: bytes) -> None:
    """One odd file ends the whole run."""
    text, reason = decode_source(data, 150)
    assert (text is None) != (reason is None)


@given(st.binary(max_size=50))
def test_blob_id_is_that_of_git(data: bytes) -> None:
    """The provenance of a plain folder cannot be compared with git's."""
    assert blob_id(data) == hashlib.new("sha1", b"blob " + str(len(data)).encode() + b"\0" + data).hexdigest()


@pytest.mark.parametrize(("paths", "found"), [
    (["LICENSE", "a.kt"], "LICENSE"),
    (["license/LICENSE.txt", "a.kt"], "license/LICENSE.txt"),
    (["COPYING", "LICENSE.md"], "LICENSE.md"),
    (["COPYING"], "COPYING"),
    (["UNLICENSE"], "UNLICENSE"),
    (["third/LICENSE", "src/License.kt"], None),
    (["a.kt"], None),
])
def test_find_license(paths: list[str], found: str | None) -> None:
    """The wrong licence, or none, is recorded for a code base."""
    assert find_license(paths) == found


@pytest.mark.parametrize(("url", "clean"), [
    ("https://user:se%40cret@host/x.git", "https://host/x.git"),
    ("https://token@host:8443/x.git", "https://host:8443/x.git"),
    ("https://host/x@y.git", "https://host/x@y.git"),
    ("git@host:x.git", "git@host:x.git"),
    ("file:///a@b/c", "file:///a@b/c"),
])
def test_credentials_are_taken_out_of_the_url(url: str, clean: str) -> None:
    """A password ends up in git's arguments or configuration."""
    found, environment = split_credentials(url)
    assert found == clean
    assert bool(environment) == (url != clean)


# ---------------------------------------------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------------------------------------------

def test_raw_and_provenance_lines(repository: Repository, parse: Callable[..., Result]) -> None:
    """The next stage cannot read the raw file, or a line's origin is that of another line."""
    commit = repository.commit({"b.kt": b"val b = 2\n", "a/z.kt": MAIN, "LICENSE": b"free", "readme.md": b"x"})
    result = parse(repository.path)
    assert result.raw == [{"file_text": MAIN.decode()}, {"file_text": "val b = 2\n"}]
    assert result.provenance == [
        {"repository": "code", "commit": commit, "path": path, "blob": blob_id(data), "license_file": "LICENSE"}
        for path, data in (("a/z.kt", MAIN), ("b.kt", b"val b = 2\n"))]
    assert result.manifest["counts"] == {"kept": 2, "kept, duplicate of an earlier file": 0}


def test_two_runs_give_the_same_bytes(repository: Repository, parse: Callable[..., Result]) -> None:
    """Results cannot be repeated."""
    repository.commit({f"{name}.kt": f"val {name} = 1\n".encode() for name in "zbyä"})
    assert parse(repository.path).bytes == parse(repository.path, output="again/raw.jsonl").bytes


def test_manifest_hashes_are_those_of_the_files(repository: Repository, parse: Callable[..., Result], tmp_path: Path) -> None:
    """preprocess_data.py refuses an intact file, or takes a damaged one."""
    repository.commit({"a.kt": MAIN})
    outputs = parse(repository.path).manifest["outputs"]
    assert outputs == {name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
                       for name in ("raw.jsonl", "raw.provenance.jsonl")}


def test_odd_files_are_counted_by_reason_and_named(repository: Repository, parse: Callable[..., Result]) -> None:
    """Files vanish without a word, or one of them ends the run."""
    repository.commit({"ok.kt": MAIN, "latin.kt": b"val s = \"\xe4\"\n", "nul.kt": b"a\0b", "empty.kt": b"", "blank.kt": b" \n",
                       "big.kt": b"val a = 1\n" * 100, "lfs.kt": parse_data.LFS_POINTER + b"oid sha256:0\n"})
    result = parse(repository.path, options=("--max_file_bytes", 500))
    assert result.paths == ["ok.kt"]
    assert result.skipped == {"not UTF-8": ["latin.kt"], "NUL bytes": ["nul.kt"], "empty": ["blank.kt", "empty.kt"],
                              "larger than --max_file_bytes": ["big.kt"], "LFS pointer": ["lfs.kt"]}
    assert result.manifest["counts"]["skipped, empty"] == 2


def test_links_folders_and_submodules_are_not_read(repository: Repository, parse: Callable[..., Result], tmp_path: Path) -> None:
    """A repository makes the script read files outside it."""
    (tmp_path / "secret.kt").write_text("val password = 1\n")
    (repository.path / "link.kt").symlink_to(tmp_path / "secret.kt")
    (repository.path / "loop").symlink_to(".")
    head = repository.commit({"dir.kt/inner.kt": MAIN, "dir.kt/inner.txt": b"not code"})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{head},module.kt")
    repository.git("commit", "-q", "-m", "submodule")
    result = parse(repository.path)
    assert result.paths == ["dir.kt/inner.kt"]
    assert result.skipped == {"not a regular file": ["link.kt", "module.kt"]}


def test_executable_files_are_read(repository: Repository, parse: Callable[..., Result]) -> None:
    """Files with the executable bit are missing."""
    (repository.path / "run.kt").write_bytes(MAIN)
    (repository.path / "run.kt").chmod(0o755)
    repository.commit()
    assert parse(repository.path).paths == ["run.kt"]


def test_attributes_and_filters_do_not_change_content(repository: Repository, parse: Callable[..., Result], tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository's .gitattributes rewrites what is collected, or runs a filter of the user."""
    content = b"// $Id$\nval a = 1\n"
    repository.commit({"a.kt": content, ".gitattributes": b"*.kt text eol=crlf ident filter=mark\n"})
    (tmp_path / "gitconfig").write_text(f'[filter "mark"]\n\tsmudge = touch {tmp_path}/ran; cat\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    result = parse(repository.path)
    assert result.texts == [content.decode()]
    assert result.provenance[0]["blob"] == blob_id(content)
    assert not (tmp_path / "ran").exists()


def test_bom_and_line_ends(repository: Repository, parse: Callable[..., Result]) -> None:
    """A BOM or CRLF reaches the model."""
    repository.commit({"a.kt": b"\xef\xbb\xbfval a = 1\r\nval b = 2\r\n"})
    assert parse(repository.path).texts == ["val a = 1\nval b = 2\n"]


def test_duplicates_are_kept_and_counted(repository: Repository, parse: Callable[..., Result]) -> None:
    """The raw file is not what the repository holds, or nothing says that it repeats itself."""
    repository.commit({"a.kt": MAIN, "b.kt": MAIN, "c.kt": b"val c = 1\n"})
    result = parse(repository.path)
    assert result.paths == ["a.kt", "b.kt", "c.kt"]
    assert result.manifest["sources"][0]["duplicates"] == ["b.kt"]
    assert result.manifest["counts"]["kept, duplicate of an earlier file"] == 1


def test_paths_that_are_not_utf8(repository: Repository, parse: Callable[..., Result]) -> None:
    """One file name in an old encoding, of a source, a link or the licence, ends the run with a traceback."""
    folder = os.fsencode(repository.path)
    for name in (b"n\xe4me.kt", b"LICENSE\xe4"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(MAIN)
    os.symlink(b"target", os.path.join(folder, b"l\xe4nk.kt"))
    repository.commit()
    result = parse(repository.path)
    assert result.provenance[0]["path"] == "n\\xe4me.kt"
    assert result.provenance[0]["license_file"] == "LICENSE\\xe4"
    assert result.skipped == {"not a regular file": ["l\\xe4nk.kt"]}


@pytest.mark.parametrize("extensions", [(".kt", ".kts"), ("kt", "kts")])
def test_extensions_with_and_without_dot(repository: Repository, parse: Callable[..., Result], extensions: tuple[str, ...]) -> None:
    """--extensions finds other files than it names."""
    repository.commit({"a.kt": MAIN, "b.kts": MAIN, "c.java": MAIN, "dkt": MAIN})
    assert parse(repository.path, options=("--extensions", *extensions)).paths == ["a.kt", "b.kts"]


def test_revision_as_branch_tag_and_commit(repository: Repository, parse: Callable[..., Result]) -> None:
    """--revision reads another state of the code than it names."""
    first = repository.commit({"a.kt": b"val version = 1\n"})
    repository.git("tag", "-a", "v1", "-m", "first")
    repository.git("checkout", "-q", "-b", "side")
    repository.commit({"a.kt": b"val version = 2\n"})
    repository.git("checkout", "-q", "main")
    repository.commit({"a.kt": b"val version = 3\n"})
    for revision, version in (("v1", 1), (first, 1), ("side", 2), ("main", 3)):
        result = parse(repository.path, options=("--revision", revision))
        assert result.texts == [f"val version = {version}\n"], revision
    assert parse(repository.path).texts == ["val version = 3\n"]


def test_committed_state_is_read_not_the_working_tree(repository: Repository, parse: Callable[..., Result]) -> None:
    """The recorded commit does not hold what was collected."""
    repository.commit({"a.kt": MAIN})
    (repository.path / "a.kt").write_bytes(b"changed\n")
    (repository.path / "new.kt").write_bytes(b"new\n")
    assert parse(repository.path).texts == [MAIN.decode()]


def test_several_sources_of_every_kind(tmp_path: Path, parse: Callable[..., Result]) -> None:
    """--repo_url takes only one kind of code base, or mixes up whose files are whose."""
    first, second, bare = Repository(tmp_path / "first"), Repository(tmp_path / "second"), tmp_path / "bare.git"
    first.commit({"a.kt": b"val a = 1\n"})
    second.commit({"b.kt": b"val b = 1\n", "same.kt": b"val a = 1\n"})
    subprocess.run(["git", "clone", "-q", "--bare", first.path, bare], check=True)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "c.kt").write_bytes(b"val c = 1\n")
    result = parse(first.path, second.path.as_uri(), tmp_path / "plain", bare)
    assert [(row["repository"], row["path"]) for row in result.provenance] == [
        ("first", "a.kt"), (second.path.as_uri(), "b.kt"), (second.path.as_uri(), "same.kt"), ("plain", "c.kt"), ("bare.git", "a.kt")]
    assert [row["commit"] is None for row in result.provenance] == [False, False, False, True, False]
    assert [source["duplicates"] for source in result.manifest["sources"]] == [[], ["same.kt"], [], ["a.kt"]]


def test_plain_folder(tmp_path: Path, parse: Callable[..., Result]) -> None:
    """A plain folder gives ignored build products, or files outside it."""
    folder = tmp_path / "plain"
    for name in ("a.kt", "sub/b.kt", "build/generated.kt", "sub/skip.kt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"// {name}\n")
    (folder / ".gitignore").write_text("build/\n")
    (folder / "sub" / ".gitignore").write_text("skip.kt\n")
    (tmp_path / "outside.kt").write_text("secret\n")
    (folder / "link.kt").symlink_to(tmp_path / "outside.kt")
    (folder / "loop").symlink_to(folder)
    before = sorted(folder.rglob("*"))
    result = parse(folder)
    assert result.paths == ["a.kt", "sub/b.kt"]
    assert result.skipped == {"not a regular file": ["link.kt"]}
    assert result.provenance[0]["blob"] == blob_id(b"// a.kt\n")
    assert sorted(folder.rglob("*")) == before  # nothing is written into the user's folder


# ---------------------------------------------------------------------------------------------------------------
# How little is fetched
# ---------------------------------------------------------------------------------------------------------------

def test_only_the_wanted_files_of_one_commit_are_fetched(repository: Repository, parse: Callable[..., Result],
                                                         capfd: pytest.CaptureFixture) -> None:
    """The clone takes gigabytes: history, or files nobody asked for, cross the wire."""
    repository.commit({"old.kt": os.urandom(200_000)})
    (repository.path / "old.kt").unlink()
    repository.commit({"a.kt": MAIN, "picture.png": os.urandom(200_000)})
    result = parse(repository.path)
    assert result.texts == [MAIN.decode()]
    assert result.manifest["sources"][0]["received_bytes"] < 50_000
    assert "cannot leave out" not in capfd.readouterr().err


def test_a_server_that_refuses_filters(repository: Repository, parse: Callable[..., Result], capfd: pytest.CaptureFixture) -> None:
    """A server without partial clones cannot be used, or the download grows without a word; history still stays away."""
    repository.commit({"old.kt": os.urandom(200_000)})
    (repository.path / "old.kt").unlink()
    repository.commit({"a.kt": MAIN})
    repository.git("config", "uploadpack.allowFilter", "false")
    result = parse(repository.path.as_uri())
    assert result.texts == [MAIN.decode()]
    assert result.manifest["sources"][0]["received_bytes"] < 50_000
    assert "cannot leave out file contents" in capfd.readouterr().err
    assert parse(repository.path).texts == [MAIN.decode()]
    assert "cannot leave out" not in capfd.readouterr().err  # a local folder is no server


# ---------------------------------------------------------------------------------------------------------------
# What cannot be read
# ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("location", "options", "message"), [
    ("missing/folder", (), "no such folder"),
    ("ext::sh -c touch% PWNED", (), "protocol is not allowed"),
    ("fd::17", (), "protocol is not allowed"),
    ("--upload-pack=touch PWNED:x", (), "cannot start with '-'"),
    ("--upload-pack=touch PWNED", (), "no such folder"),
    ("file:///no/such/repository.git", (), "check the address"),
    ("CODE", ("--revision", "nothing"), "has no such branch, tag or commit"),
    ("CODE", ("--revision=--upload-pack=touch PWNED",), "cannot start with '-'"),
    ("CODE", ("--extensions", ".scala"), "no usable file ending in .scala"),
    ("CODE/a.kt", (), "is a file"),
    ("PLAIN", (), "no usable file"),
    ("PLAIN", ("--revision", "main"), "plain folder"),
    ("EMPTY", (), "is empty"),
])
def test_mistakes_are_one_line(location: str, options: tuple, message: str, repository: Repository, tmp_path: Path,
                               failure: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake gives a traceback, runs a command, or leaves something behind."""
    monkeypatch.chdir(tmp_path)
    repository.commit({"a.kt": MAIN})
    Repository(tmp_path / "empty")
    (tmp_path / "plain").mkdir()
    for name, folder in (("CODE", "code"), ("PLAIN", "plain"), ("EMPTY", "empty")):
        location = location.replace(name, str(tmp_path / folder)) if location.startswith(name) else location
    assert message in failure(location, options=options)
    assert not list(tmp_path.rglob("PWNED*"))


def test_a_failure_leaves_the_previous_output(repository: Repository, parse: Callable[..., Result], failure: Callable[..., str],
                                              tmp_path: Path) -> None:
    """A run that fails in its second source destroys the result of the run before."""
    repository.commit({"a.kt": MAIN})
    parse(repository.path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    repository.commit({"b.kt": b"val b = 1\n"})
    assert "no such folder" in failure(repository.path, tmp_path / "missing")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_command_line_of_a_mistake(run_script: Callable, error_line: Callable[[str], str], tmp_path: Path) -> None:
    """A shell script cannot tell that the stage failed."""
    result = run_script("parse_data.py", "--repo_url", "missing", "--clone_path", "clone", "--output_file", "out/raw.jsonl")
    assert result.returncode == 1
    assert error_line(result.stderr).startswith("parse_data.py: error: --repo_url missing: no such folder")
    assert not (tmp_path / "clone").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".raw.jsonl.lock"]


def test_git_variables_of_a_hook_do_not_lead_elsewhere(repository: Repository, tmp_path: Path, run_script: Callable) -> None:
    """Started from a git hook, the script works on the repository of the hook and changes its configuration."""
    repository.commit({"a.kt": MAIN})
    other = Repository(tmp_path / "other")
    other.commit({"x.kt": b"val x = 1\n"})
    config = (other.path / ".git" / "config").read_bytes()
    environment = {**os.environ, "GIT_DIR": str(other.path / ".git"), "GIT_WORK_TREE": str(other.path),
                   "GIT_INDEX_FILE": str(other.path / ".git" / "index")}
    result = run_script("parse_data.py", "--repo_url", repository.path, "--clone_path", "clone", "--output_file", "out/raw.jsonl",
                        env=environment)
    assert result.returncode == 0, result.stderr
    assert Result(tmp_path / "out" / "raw.jsonl").paths == ["a.kt"]
    assert (other.path / ".git" / "config").read_bytes() == config
    assert not (other.path / ".git" / "FETCH_HEAD").exists()


# ---------------------------------------------------------------------------------------------------------------
# The clone's folder
# ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "link", "marker of another kind"])
def test_what_existed_at_clone_path_stays(kind: str, repository: Repository, tmp_path: Path, run_script: Callable,
                                          error_line: Callable[[str], str]) -> None:
    """--clone_path deletes the user's files."""
    repository.commit({"a.kt": MAIN})
    path, target = tmp_path / "clone", tmp_path / "target"
    target.mkdir()
    (target / CLONE_MARKER).write_text("0")
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(target)
    else:
        path.mkdir()
        if kind == "folder":
            (path / "mine.txt").write_text("mine")
        elif kind == "marker of another kind":
            (path / CLONE_MARKER).mkdir()
    before = sorted(tmp_path.glob("clone/**/*")), path.lstat()[:7], path.lstat().st_mtime_ns  # not when it was read
    result = run_script("parse_data.py", "--repo_url", repository.path, "--clone_path", path, "--output_file", "out/raw.jsonl")
    assert result.returncode == 1
    assert "exists already and will not be deleted" in error_line(result.stderr)
    assert (sorted(tmp_path.glob("clone/**/*")), path.lstat()[:7], path.lstat().st_mtime_ns) == before
    assert (target / CLONE_MARKER).exists()
    assert not (tmp_path / "out" / "raw.jsonl").exists()


@pytest.mark.parametrize("marker", ["dead", ""])
def test_the_leftover_of_a_dead_run_is_swept(marker: str, repository: Repository, parse: Callable[..., Result], tmp_path: Path,
                                             capfd: pytest.CaptureFixture) -> None:
    """After a kill -9, every run fails until the user cleans up by hand."""
    repository.commit({"a.kt": MAIN})
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / CLONE_MARKER).write_text(str(child.pid) if marker else "")
    (tmp_path / "out").mkdir()
    leftovers = [tmp_path / "out" / f".raw.{name}.pipeline-tmp-{child.pid}" for name in ("jsonl", "provenance.jsonl", "manifest.json")]
    for path in leftovers:
        path.touch()
    assert parse(repository.path).paths == ["a.kt"]
    assert f"removed {tmp_path / 'clone'}, left by a run that was killed" in capfd.readouterr().err
    assert not any(path.exists() for path in leftovers)


def test_the_clone_of_a_live_run_is_refused(repository: Repository, run_script: Callable, error_line: Callable[[str], str],
                                            tmp_path: Path) -> None:
    """Two runs delete each other's clones."""
    repository.commit({"a.kt": MAIN})
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / CLONE_MARKER).write_text(str(os.getpid()))
    result = run_script("parse_data.py", "--repo_url", repository.path, "--clone_path", "clone", "--output_file", "out/raw.jsonl")
    assert result.returncode == 1
    assert "another run is using it" in error_line(result.stderr)
    assert (tmp_path / "clone" / CLONE_MARKER).read_text() == str(os.getpid())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM leaves the clone, a git process that goes on, or a destroyed output."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "raw.jsonl").write_text("previous\n")
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection and never answers
        server.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, ROOT / "parse_data.py", "--repo_url", f"http://127.0.0.1:{server.getsockname()[1]}/x.git",
             "--clone_path", "clone", "--output_file", "out/raw.jsonl"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # pytest in the background ignores it
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            assert connection.recv(1) == b"G"  # git is in the middle of its request
            assert (tmp_path / "clone").is_dir()
            process.send_signal(number)
            _, stderr = process.communicate(timeout=20)
            while connection.recv(4096):  # ends when git's own processes have ended
                pass
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) == 2
    assert not (tmp_path / "clone").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".raw.jsonl.lock", "raw.jsonl"]
    assert (tmp_path / "out" / "raw.jsonl").read_text() == "previous\n"


# ---------------------------------------------------------------------------------------------------------------
# Servers and passwords
# ---------------------------------------------------------------------------------------------------------------

class GitHandler(http.server.BaseHTTPRequestHandler):
    """Git's own HTTP backend, which asks for a password and fails the first `failures` requests."""
    root, failures, seen = Path(), 0, ()

    def answer(self) -> None:
        kind = type(self)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind.failures:
            kind.failures -= 1
            return self.send_error(503)
        expected = "Basic " + base64.b64encode(b"user:s3cr@t").decode()
        if self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        path, _, query = self.path.partition("?")
        environment = {**os.environ, "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
                       "QUERY_STRING": query, "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                       "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "CONTENT_LENGTH": str(len(body)),
                       "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        head, _, content = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True,
                                          check=True).stdout.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[type[GitHandler], str]]:
    class Handler(GitHandler):
        root = tmp_path
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield Handler, f"127.0.0.1:{running.server_port}/code/.git"
        running.shutdown()


def test_credentials_are_used_and_never_written(repository: Repository, server: tuple, parse: Callable[..., Result], tmp_path: Path,
                                                capfd: pytest.CaptureFixture) -> None:
    """A private repository cannot be read, or the password stands in the manifest that is published."""
    repository.commit({"a.kt": MAIN})
    result = parse(f"http://user:s3cr%40t@{server[1]}")
    assert result.texts == [MAIN.decode()]
    assert result.provenance[0]["repository"] == f"http://***@{server[1]}"
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir()).decode() + "".join(capfd.readouterr())
    for secret in ("s3cr", "user:"):
        assert secret not in written


def test_a_missing_right_is_an_error_and_not_a_question(repository: Repository, server: tuple, failure: Callable[..., str]) -> None:
    """The script waits for a password for ever."""
    repository.commit({"a.kt": MAIN})
    assert "rights" in failure(f"http://{server[1]}")


def test_a_passing_fault_is_tried_again(repository: Repository, server: tuple, parse: Callable[..., Result],
                                        capfd: pytest.CaptureFixture) -> None:
    """One hiccup of the server ends an hour's download."""
    repository.commit({"a.kt": MAIN})
    server[0].failures = 1
    assert parse(f"http://user:s3cr%40t@{server[1]}").paths == ["a.kt"]
    assert "trying again" in capfd.readouterr().err


@pytest.mark.parametrize("url", ["http://user:secret@127.0.0.1:9/x.git", "http://user:a@secret@127.0.0.1:9/x.git",
                                 "http://secret@127.0.0.1:9/x.git"])
def test_a_refused_connection_shows_no_password(url: str, failure: Callable[..., str]) -> None:
    """The error message that a user pastes into a forum holds the password."""
    message = failure(url, hidden="secret")
    assert "***@127.0.0.1:9" in message


def test_a_folder_of_the_users_under_our_temporary_name_stays(tmp_path: Path) -> None:
    """A folder is removed for its name alone; or what a run left that was killed before the clone had its name stays for ever."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    theirs, ours = (tmp_path / f".clone{parse_data.TEMPORARY}-{name}" for name in ("mine", gone.pid))
    for folder in (theirs, ours):
        folder.mkdir()
    (theirs / "thesis.txt").touch()
    (ours / CLONE_MARKER).write_text(str(gone.pid))
    with parse_data.clone_folder(tmp_path / "clone") as clone:
        assert clone.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]
    assert (theirs / "thesis.txt").exists()
