"""pipeline/sources/locations.py: what --repo_url, --revision and --extensions may name."""
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from parsing_runs import MAIN, Repository, Result


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
        ("first", "a.kt"), (second.path.as_uri(), "b.kt"), (second.path.as_uri(), "same.kt"),
        ("plain", "c.kt"), ("bare.git", "a.kt")]
    assert [row["commit"] is None for row in result.provenance] == [False, False, False, True, False]
    assert [source["duplicates"] for source in result.manifest["sources"]] == [[], ["same.kt"], [], ["a.kt"]]


@pytest.mark.parametrize("extensions", [(".kt", ".kts"), ("kt", "kts")])
def test_extensions_with_and_without_dot(repository: Repository, parse: Callable[..., Result],
                                         extensions: tuple[str, ...]) -> None:
    """--extensions finds other files than it names."""
    repository.commit({"a.kt": MAIN, "b.kts": MAIN, "c.java": MAIN, "dkt": MAIN})
    assert parse(repository.path, options=("--extensions", *extensions)).paths == ["a.kt", "b.kts"]


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
def test_mistakes_are_one_line(location: str, options: tuple, message: str, repository: Repository,
                               tmp_path: Path, parse_failure: Callable[..., str],
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake gives a traceback, runs a command, or leaves something behind."""
    monkeypatch.chdir(tmp_path)
    repository.commit({"a.kt": MAIN})
    Repository(tmp_path / "empty")
    (tmp_path / "plain").mkdir()
    for name, folder in (("CODE", "code"), ("PLAIN", "plain"), ("EMPTY", "empty")):
        location = location.replace(name, str(tmp_path / folder)) if location.startswith(name) else location
    assert message in parse_failure(location, options=options)
    assert not list(tmp_path.rglob("PWNED*"))
