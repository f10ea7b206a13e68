"""pipeline/sources/git.py: what is read of a repository, how little is fetched, servers and passwords."""
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from git_server import GitHandler
from parsing_runs import MAIN, Repository, Result

from pipeline.sources.git import make_clone, split_credentials
from pipeline.sources.source import blob_id


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[type[GitHandler], str]]:
    class Handler(GitHandler):
        root = tmp_path

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield Handler, f"127.0.0.1:{running.server_port}/code/.git"
        running.shutdown()


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


def test_links_folders_and_submodules_are_not_read(repository: Repository, parse: Callable[..., Result],
                                                   tmp_path: Path) -> None:
    """A repository makes the script read files outside it."""
    (tmp_path / "secret.kt").write_text("val password = 1\n")
    (repository.path / "link.kt").symlink_to(tmp_path / "secret.kt")
    (repository.path / "loop").symlink_to(".")
    head = repository.commit({"dir.kt/inner.kt": MAIN, "dir.kt/inner.txt": b"not code"})
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{head},module.kt")
    repository.git("commit", "-q", "-m", "submodule")
    result = parse(repository.path)
    assert result.paths == ["dir.kt/inner.kt"]
    assert result.skipped == {"not a regular file": ["link.kt"], "submodule": ["module.kt"]}


def test_executable_files_are_read(repository: Repository, parse: Callable[..., Result]) -> None:
    """Files with the executable bit are missing."""
    (repository.path / "run.kt").write_bytes(MAIN)
    (repository.path / "run.kt").chmod(0o755)
    repository.commit()
    assert parse(repository.path).paths == ["run.kt"]


def test_attributes_and_filters_do_not_change_content(repository: Repository, parse: Callable[..., Result],
                                                      tmp_path: Path,
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


def test_committed_state_is_read_not_the_working_tree(repository: Repository,
                                                      parse: Callable[..., Result]) -> None:
    """The recorded commit does not hold what was collected."""
    repository.commit({"a.kt": MAIN})
    (repository.path / "a.kt").write_bytes(b"changed\n")
    (repository.path / "new.kt").write_bytes(b"new\n")
    assert parse(repository.path).texts == [MAIN.decode()]


def test_only_the_wanted_files_of_one_commit_are_fetched(repository: Repository, server: tuple,
                                                         parse: Callable[..., Result],
                                                         capfd: pytest.CaptureFixture) -> None:
    """The clone takes gigabytes: history, or unwanted files, are transferred."""
    repository.commit({"old.kt": os.urandom(200_000)})
    (repository.path / "old.kt").unlink()
    repository.commit({"a.kt": MAIN, "picture.png": os.urandom(200_000)})
    result = parse(f"http://user:s3cr%40t@{server[1]}")
    assert result.texts == [MAIN.decode()]
    assert result.manifest["sources"][0]["received_bytes"] < 50_000
    assert "cannot leave out" not in capfd.readouterr().err


def test_a_server_that_refuses_filters(repository: Repository, server: tuple, parse: Callable[..., Result],
                                       capfd: pytest.CaptureFixture) -> None:
    """A server without partial clones cannot be used, sends history too, or sends more without a word."""
    repository.commit({"old.kt": os.urandom(200_000)})
    (repository.path / "old.kt").unlink()
    repository.commit({"a.kt": MAIN})
    repository.git("config", "uploadpack.allowFilter", "false")
    result = parse(f"http://user:s3cr%40t@{server[1]}")
    assert result.texts == [MAIN.decode()]
    assert result.manifest["sources"][0]["received_bytes"] < 50_000
    assert "cannot leave out file contents" in capfd.readouterr().err
    assert parse(repository.path).texts == [MAIN.decode()]
    assert "cannot leave out" not in capfd.readouterr().err  # a local folder is no server


def settings_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Give git these settings of the user, `section__name="value"`."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    for name, value in settings.items():
        subprocess.run(["git", "config", "--file", tmp_path / "gitconfig", name.replace("__", "."), value],
                       check=True)


@pytest.mark.parametrize("kind", ["repository", "bare", "plain folder"])
def test_bare_repositories_only_where_they_are_named(kind: str, repository: Repository, tmp_path: Path,
                                                     parse: Callable[..., Result],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a company has git ignore bare repositories that it stumbles upon, nothing can be collected."""
    repository.commit({"a.kt": MAIN})
    source = repository.path
    if kind == "bare":
        source = tmp_path / "bare.git"
        subprocess.run(["git", "clone", "-q", "--bare", repository.path, source], check=True)
    elif kind == "plain folder":
        shutil.rmtree(source / ".git")
    settings_of_git(tmp_path, monkeypatch, safe__bareRepository="explicit")
    assert parse(source).paths == ["a.kt"]


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_every_version_of_the_protocol(version: str, repository: Repository, server: tuple,
                                       parse: Callable[..., Result],
                                       tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture) -> None:
    """With a proxy that knows only the old protocol, contents that were left out are never given."""
    repository.commit({"old.kt": os.urandom(200_000)})
    (repository.path / "old.kt").unlink()
    repository.commit({"a.kt": MAIN, "b.txt": b"text"})
    settings_of_git(tmp_path, monkeypatch, protocol__version=version)
    result = parse(f"http://user:s3cr%40t@{server[1]}")
    assert result.texts == [MAIN.decode()]
    assert result.manifest["sources"][0]["received_bytes"] < 50_000
    assert ("gives no file contents by their identifiers" in capfd.readouterr().err) == (version != "2")
    assert parse(repository.path).texts == [MAIN.decode()]
    assert "identifiers" not in capfd.readouterr().err  # a local repository gives what is requested


def test_a_commit_that_a_server_does_not_give(repository: Repository, server: tuple,
                                              parse_failure: Callable[..., str],
                                              parse: Callable[..., Result], tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is sent to look after the network and his rights, where only the commit's name is at fault."""
    first = repository.commit({"a.kt": MAIN})
    repository.commit({"a.kt": b"val b = 1\n"})
    settings_of_git(tmp_path, monkeypatch, protocol__version="0")
    message = parse_failure(f"http://user:s3cr%40t@{server[1]}", options=("--revision", first))
    assert "gives branches and tags alone" in message
    assert message.endswith("its branches: main")
    assert parse(repository.path, options=("--revision", first)).texts == [MAIN.decode()]


def test_revisions_of_a_repository_elsewhere(repository: Repository, server: tuple,
                                             parse: Callable[..., Result],
                                             parse_failure: Callable[..., str]) -> None:
    """A commit that a colleague has named by its first digits cannot be read, or another one is."""
    first = repository.commit({"a.kt": MAIN})
    repository.git("tag", "v1")
    middle = repository.commit({"a.kt": b"val second = 2\n"})
    repository.commit({"a.kt": b"val third = 3\n", "app/b.kt": b"val b = 1\n", "LICENSE": b"free"})
    url = f"http://user:s3cr%40t@{server[1]}"
    for revision in ("v1", first, first[:9]):
        assert parse(f"{url}@{revision}").provenance[0]["commit"] == first
    part = parse(f"{url}@main#app")
    assert [(row["path"], row["license_file"]) for row in part.provenance] == [("app/b.kt", "LICENSE")]
    for revision in ("HEAD~1", middle[:9]):  # which no branch or tag names
        message = parse_failure(url, options=("--revision", revision))
        assert message.endswith("code/.git has no such branch, tag or commit (a server knows a commit by its "
                                "whole identifier alone, and nothing like HEAD~1; a clone on this disk "
                                "does); its branches: main")


def test_a_repository_elsewhere_with_other_names(server: tuple, parse: Callable[..., Result],
                                                 tmp_path: Path) -> None:
    """A repository with SHA-256 names is reported as unreachable."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.kt").write_bytes(MAIN)
    for command in (["init", "-q", "--object-format=sha256"], ["add", "."],
                    ["-c", "user.name=t", "-c", "user.email=t", "commit", "-q", "-m", "c"]):
        subprocess.run(["git", "-C", tmp_path / "code", *command], check=True)
    result = parse(f"http://user:s3cr%40t@{server[1]}")
    assert (result.texts, len(result.provenance[0]["blob"])) == ([MAIN.decode()], 64)


def test_another_git(repository: Repository, tmp_path: Path, run_script: Callable,
                     error_line: Callable[[str], str]) -> None:
    """The git that GIT_PYTHON_GIT_EXECUTABLE names is used for some commands only, or not found."""
    repository.commit({"a.kt": MAIN})
    git = shutil.which("git")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "our git").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\nexec {git} "$@"\n')
    (tmp_path / "own" / "our git").chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\ntouch {tmp_path}/wrong\nexit 1\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "b.kt").write_bytes(b"val b = 1\n")
    environment = {**os.environ, "GIT_PYTHON_GIT_EXECUTABLE": "own/our git",
                   "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = ("parse_data.py", "--repo_url", repository.path, "plain", "--clone_path", "clone",
               "--output_file", "out/raw.jsonl")
    done = run_script(*command, env=environment)
    assert done.returncode == 0, done.stderr
    assert Result(tmp_path / "out" / "raw.jsonl").paths == ["a.kt", "b.kt"]
    assert not (tmp_path / "wrong").exists()
    assert {"rev-parse", "ls-tree", "cat-file", "ls-files"} <= set((tmp_path / "log").read_text().split())
    environment["GIT_PYTHON_GIT_EXECUTABLE"] = "own/missing"
    assert "own/missing" in error_line(run_script(*command, env=environment).stderr)


def test_a_git_that_fails_in_a_short_command(repository: Repository, parse_failure: Callable[..., str],
                                             tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged configuration of the user's ends in a traceback of GitPython."""
    repository.commit({"a.kt": MAIN})
    (tmp_path / "gitconfig").write_text("[user\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    assert "code: git: fatal: bad config line 1 in file" in parse_failure(repository.path)


@pytest.mark.parametrize(("user", "name", "found"), [
    (None, None, "ssh -oBatchMode=yes"), (None, "GIT_SSH", None), ("ssh -i key", None, None)])
def test_the_users_ssh(user: str | None, name: str | None, found: str | None, repository: Repository,
                       tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that the user's git settings name is not used, and the server refuses."""
    for variable in ("GIT_SSH_COMMAND", "GIT_SSH"):
        monkeypatch.delenv(variable, raising=False)
    if name:
        monkeypatch.setenv(name, "/bin/ssh")
    if user:
        settings_of_git(tmp_path, monkeypatch, core__sshCommand=user)
    with make_clone("git@example.invalid:x.git", tmp_path / "clone") as repo:
        assert repo.git.environment().get("GIT_SSH_COMMAND") == found


def test_credentials_are_used_and_never_written(repository: Repository, server: tuple,
                                                parse: Callable[..., Result], tmp_path: Path,
                                                capfd: pytest.CaptureFixture) -> None:
    """A private repository cannot be read, or the password stands in the manifest that is published."""
    repository.commit({"a.kt": MAIN})
    result = parse(f"http://user:s3cr%40t@{server[1]}")
    assert result.texts == [MAIN.decode()]
    assert result.provenance[0]["repository"] == f"http://***@{server[1]}"
    files = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir()).decode()
    written = files + "".join(capfd.readouterr())
    for secret in ("s3cr", "user:"):
        assert secret not in written


def test_credentials_are_added_to_the_settings_of_the_environment(
        repository: Repository, server: tuple, parse: Callable[..., Result],
        parse_failure: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a password in the URL, the proxy or mirror that GIT_CONFIG_COUNT sets is forgotten."""
    repository.commit({"a.kt": MAIN})
    address, path = server[1].split("/", 1)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    for number, (key, value) in enumerate([("user.name", "me"),
                                           (f"url.http://{address}/code.insteadOf", f"http://{address}/name")]):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    assert parse(f"http://user:s3cr%40t@{address}/{path.replace('code', 'name')}").paths == ["a.kt"]
    monkeypatch.setenv("GIT_CONFIG_COUNT", "two")
    assert "GIT_CONFIG_COUNT=two: is no number" in parse_failure(f"http://user:s3cr%40t@{server[1]}")


def test_a_missing_permission_is_an_error_and_not_a_prompt(repository: Repository, server: tuple,
                                                        parse_failure: Callable[..., str]) -> None:
    """The script waits for a password for ever."""
    repository.commit({"a.kt": MAIN})
    assert "rights" in parse_failure(f"http://{server[1]}")


def test_a_temporary_failure_is_retried(repository: Repository, server: tuple, parse: Callable[..., Result],
                                        capfd: pytest.CaptureFixture) -> None:
    """One hiccup of the server ends an hour's download."""
    repository.commit({"a.kt": MAIN})
    server[0].failures = 1
    assert parse(f"http://user:s3cr%40t@{server[1]}").paths == ["a.kt"]
    assert "trying again" in capfd.readouterr().err


@pytest.mark.parametrize("url", [
    "http://user:secret@127.0.0.1:9/x.git",
    "http://user:a@secret@127.0.0.1:9/x.git",
    "http://secret@127.0.0.1:9/x.git",
])
def test_a_refused_connection_shows_no_password(url: str, parse_failure: Callable[..., str]) -> None:
    """The error message that a user pastes into a forum holds the password."""
    message = parse_failure(url, hidden="secret")
    assert "***@127.0.0.1:9" in message
