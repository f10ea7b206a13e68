"""pipeline/sources/submodules.py and folders.py: repositories in repositories, and in folders."""
import http.server
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from git_server import GitHandler
from parsing_runs import MAIN, Repository, Result

from pipeline.sources.submodules import address_of


@pytest.mark.parametrize(("url", "base", "address"), [
    ("https://example.org/lib.git", "https://example.org/a/app.git", "https://example.org/lib.git"),
    ("../lib.git", "https://example.org/a/app.git", "https://example.org/a/lib.git"),
    ("../../b/lib.git", "https://example.org/a/app.git/", "https://example.org/b/lib.git"),
    ("./lib.git", "https://example.org/a/app.git", "https://example.org/a/app.git/lib.git"),
    ("../lib.git", "git@example.org:a/app.git", "git@example.org:a/lib.git"),
    ("git@example.org:lib.git", "https://example.org/app.git", "git@example.org:lib.git"),
    ("../lib", "/srv/app", None), ("/etc", "https://example.org/app.git", None),
    ("file:///etc", "https://example.org/app.git", None), ("~/lib", "https://example.org/app.git", None),
    ("--upload-pack=x:y", "https://example.org/app.git", None), (".", "https://example.org/app.git", None),
])
def test_the_address_of_a_submodule(url: str, base: str, address: str | None) -> None:
    """A submodule is fetched from elsewhere, or a downloaded repository reads a folder of this machine."""
    assert address_of(url, base) == address


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = type("Handler", (GitHandler,), {"root": tmp_path})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://user:s3cr%40t@127.0.0.1:{running.server_port}"
        running.shutdown()


def with_submodule(tmp_path: Path, url: str, name: str = "the lib") -> tuple[Repository, str]:
    """Return a repository with the submodule libs/lib at `url`, and the submodule's commit, an older one."""
    library, app = Repository(tmp_path / "lib"), Repository(tmp_path / "app")
    commit = library.commit({"lib.kt": b"val lib = 1\n", "LICENSE": b"own"})
    library.commit({"lib.kt": b"val lib = 2\n"})
    app.commit({"a.kt": MAIN, ".gitmodules":
                f'[submodule "{name}"]\n\tpath = libs/lib\n\turl = {url}\n'.encode()})
    app.git("update-index", "--add", "--cacheinfo", f"160000,{commit},libs/lib")
    app.git("commit", "-q", "-m", "submodule")
    return app, commit


def test_submodules_are_named_or_read(server: str, tmp_path: Path, parse: Callable[..., Result],
                                      capfd: pytest.CaptureFixture) -> None:
    """A third of the code is missing and nobody notices; or it is read at another commit, under the name of
    the repository that it is in."""
    _, commit = with_submodule(tmp_path, "../../lib/.git")
    location = f"{server}/app/.git"
    result = parse(location)
    assert (result.paths, result.skipped) == (["a.kt"], {"submodule": ["libs/lib"]})
    assert "submodules left out: libs/lib (--submodules" in capfd.readouterr().out
    result = parse(location, options=("--submodules",))
    hidden = location.replace("user:s3cr%40t", "***")
    assert [(row["repository"], row["path"], row["license_file"]) for row in result.provenance] == [
        (hidden, "a.kt", None), (hidden.replace("app", "lib"), "lib.kt", "LICENSE")]
    assert (result.texts[1], result.provenance[1]["commit"]) == ("val lib = 1\n", commit)
    assert result.skipped == {}
    assert parse(location, options=("--submodules", "--exclude", "libs/")).paths == ["a.kt"]


@pytest.mark.parametrize("name", ["the lib", "../../lib"])
def test_submodules_of_a_repository_on_this_disk(name: str, tmp_path: Path,
                                                 parse: Callable[..., Result]) -> None:
    """A submodule that was checked out is fetched once more, or cannot be read; or a name that is a path
    leads out of the repository."""
    app, commit = with_submodule(tmp_path, "../lib", name)
    place = app.path / ".git" / "modules" / "the lib"
    place.parent.mkdir()
    subprocess.run(["git", "clone", "-q", "--bare", tmp_path / "lib", place], check=True)
    result = parse(app.path, options=("--submodules",))
    if name == "the lib":
        assert [(row["repository"], row["path"], row["commit"]) for row in result.provenance][1:] == [
            ("app/libs/lib", "lib.kt", commit)]
    else:
        assert (result.paths, result.skipped) == (["a.kt"], {"submodule": ["libs/lib"]})


def test_a_folder_of_clones(tmp_path: Path, parse: Callable[..., Result]) -> None:
    """A folder with everything that a team has cloned gives nothing, or its files without their commits."""
    folder = tmp_path / "all"
    folder.mkdir()
    commits = {name: Repository(folder / name).commit({f"{name}.kt": f"val {name} = 1\n".encode()})
               for name in ("one", "two", "old")}
    subprocess.run(["git", "clone", "-q", "--bare", folder / "one", folder / "mirror.git"], check=True)
    Repository(folder / "group" / "deep").commit({"deep.txt": b"no Kotlin here"})
    Repository(folder / "empty")
    (folder / "loose.kt").write_bytes(MAIN)
    (folder / "two" / "two.kt").write_bytes(b"val changed = 1\n")  # not committed
    (folder / ".gitignore").write_text("old\n")
    result = parse(folder)
    assert [(row["repository"], row["path"], row["commit"]) for row in result.provenance] == [
        ("all", "loose.kt", None), ("all/mirror.git", "one.kt", commits["one"]),
        ("all/one", "one.kt", commits["one"]), ("all/two", "two.kt", commits["two"])]
    assert result.texts[3] == "val two = 1\n"
    assert result.skipped == {"clone without a commit at its HEAD": ["empty"]}
    result = parse(folder, options=("--exclude", "/mirror.git/", "two/"))
    assert [row["repository"] for row in result.provenance] == ["all", "all/one"]
    assert result.skipped == {"--exclude /mirror.git/": ["mirror.git"], "--exclude two/": ["two"],
                              "clone without a commit at its HEAD": ["empty"]}
    assert parse(f"{folder}#two").paths == ["two.kt"]
