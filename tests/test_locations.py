"""pipeline/sources/locations.py: what --repo_url, --revision and --extensions may name."""
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from parsing_runs import MAIN, Repository, Result

from pipeline.sources.locations import split_location


def test_several_sources_of_every_kind(tmp_path: Path, parse: Callable[..., Result]) -> None:
    """--repo_url takes only one kind of code base, or mixes up whose files are whose."""
    first, second = Repository(tmp_path / "first"), Repository(tmp_path / "second")
    bare = tmp_path / "bare.git"
    first.commit({"a.kt": b"val a = 1\n"})
    second.commit({"b.kt": b"val b = 1\n", "same.kt": b"val a = 1\n"})
    subprocess.run(["git", "clone", "-q", "--bare", first.path, bare], check=True)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "c.kt").write_bytes(b"val c = 1\n")
    result = parse(first.path, second.path.as_uri(), tmp_path / "plain", bare)
    assert [(row["repository"], row["path"]) for row in result.provenance] == [
        ("first", "a.kt"), ("second", "b.kt"), ("second", "same.kt"),
        ("plain", "c.kt"), ("bare.git", "a.kt")]
    assert [row["commit"] is None for row in result.provenance] == [False, False, False, True, False]
    assert [source["duplicates"] for source in result.manifest["sources"]] == [[], ["same.kt"], [], ["a.kt"]]


@pytest.mark.parametrize(("text", "location", "revision", "folder"), [
    ("https://h/x.git", "https://h/x.git", None, ""),
    ("https://h/x.git@v1", "https://h/x.git", "v1", ""),
    ("https://h/x.git#app/core", "https://h/x.git", None, "app/core"),
    ("https://h/x.git@feature/a@b#app", "https://h/x.git", "feature/a@b", "app"),
    ("https://h/x@main", "https://h/x", "main", ""),
    ("https://h/a@b/x@main", "https://h/a@b/x", "main", ""),
    ("https://h/x@y.git", "https://h/x@y.git", None, ""),
    ("https://h/x@y.git@v1", "https://h/x@y.git", "v1", ""),
    ("https://me:p%40@h/x.git@v1#f", "https://me:p%40@h/x.git", "v1", "f"),
    ("https://me:p@h/x.git", "https://me:p@h/x.git", None, ""),
    ("git@h:a/x.git", "git@h:a/x.git", None, ""),
    ("git@h:a/x.git@v1#f", "git@h:a/x.git", "v1", "f"),
    ("git@h:a/x@v1", "git@h:a/x", "v1", ""),
    ("ssh://git@h/x.git@v1", "ssh://git@h/x.git", "v1", ""),
    ("here@HEAD~1#f", "here", "HEAD~1", "f"), ("here@a@b", "here@a", "b", ""),
    ("here@a", "here@a", None, ""),
    ("here#x", "here#x", None, ""), ("here#x#f", "here#x", None, "f"),
    ("here@h:x.git", "here@h:x.git", None, ""),
    ("here@main@{1}", "here", "main@{1}", ""), ("here#x@v1", "here#x", "v1", ""),
    ("here#f", "here", None, "f"),
    ("missing@v1#f", "missing@v1", None, "f"), ("", "", None, ""), ("@", "@", None, ""), ("#", "", None, "")])
def test_what_follows_a_location(text: str, location: str, revision: str | None, folder: str,
                                       tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address with an @ in it is taken apart, or its revision is taken for a part of its name."""
    for name in ("here", "here@a", "here#x"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_location(text) == (location, revision, folder)


@pytest.mark.parametrize("kind", ["repository", "plain folder"])
@pytest.mark.parametrize("name", [b"la\xe9tin", b"~tilde", b"a::b", b"a:b", b"ext::sh -c true",
                                  b"$HOME %41 #?", "\u00e4".encode()])
def test_folders_of_every_name(name: bytes, kind: str, tmp_path: Path, parse: Callable[..., Result],
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose name is in an old encoding, or means something elsewhere, cannot be collected."""
    monkeypatch.chdir(tmp_path)
    folder = os.fsdecode(name)
    Repository(tmp_path / folder).commit({"a.kt": MAIN})
    if kind == "plain folder":
        shutil.rmtree(tmp_path / folder / ".git")
    result = parse(f"./{folder}", output=f"{folder}/raw.jsonl")
    assert result.paths == ["a.kt"]
    assert result.provenance[0]["repository"] == name.decode("utf-8", "backslashreplace")


def test_names_where_file_names_are_not_utf8(tmp_path: Path, run_script: Callable) -> None:
    """Under an ASCII locale, names that are UTF-8 are recorded as something else."""
    Repository(tmp_path / "n\u00e4me").commit({"\u00e4.kt": MAIN})
    shutil.rmtree(tmp_path / "n\u00e4me" / ".git")
    done = run_script("parse_data.py", "--repo_url", "n\u00e4me", "--clone_path", "clone", "--output_file",
                      "out/raw.jsonl", env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0",
                                            "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0, done.stderr
    (row,) = Result(tmp_path / "out" / "raw.jsonl").provenance
    assert (row["repository"], row["path"]) == ("n\u00e4me", "\u00e4.kt")


@pytest.mark.parametrize("extensions", [(".kt", ".kts"), ("kt", "kts")])
def test_extensions_with_and_without_dot(repository: Repository, parse: Callable[..., Result],
                                         extensions: tuple[str, ...]) -> None:
    """--extensions finds other files than it names."""
    repository.commit({"a.kt": MAIN, "b.kts": MAIN, "c.java": MAIN, "dkt": MAIN})
    assert parse(repository.path, options=("--extensions", *extensions)).paths == ["a.kt", "b.kts"]


@pytest.mark.parametrize(("location", "options", "message"), [
    ("missing/folder", (), "no such folder"),
    ("~nobodyhere/project", (), "no such folder"),
    ("x" * 5000, (), "too long"),
    ("https://[::1/x.git", (), "is no URL"),
    ("ext::sh -c touch% PWNED", (), "protocol is not allowed"),
    ("fd::17", (), "protocol is not allowed"),
    ("--upload-pack=touch PWNED:x", (), "cannot start with '-'"),
    ("--upload-pack=touch PWNED", (), "no such folder"),
    ("file:///no/such/repository.git", (), "no such folder"),
    ("CODE", ("--revision", "nothing"), "has no such branch, tag or commit"),
    ("CODE", ("--revision=--upload-pack=touch PWNED",), "cannot start with '-'"),
    ("CODE", ("--extensions", ".scala"), "no usable file ending in .scala"),
    ("CODE/a.kt", (), "is a file"),
    ("PLAIN", (), "no usable file"),
    ("PLAIN", ("--revision", "main"), "plain folder"),
    ("EMPTY", (), "is empty"),
])
def test_mistakes_are_one_line(location: str, options: tuple, message: str, repository: Repository,
                               tmp_path: Path, parse_failure: Callable[..., str],
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake gives a traceback, runs a command, or leaves something."""
    monkeypatch.chdir(tmp_path)
    repository.commit({"a.kt": MAIN})
    Repository(tmp_path / "empty")
    (tmp_path / "plain").mkdir()
    for name, folder in (("CODE", "code"), ("PLAIN", "plain"), ("EMPTY", "empty")):
        location = location.replace(name, str(tmp_path / folder)) if location.startswith(name) else location
    assert message in parse_failure(location, options=options)
    assert not list(tmp_path.rglob("PWNED*"))
