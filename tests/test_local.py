"""pipeline/sources/local.py: repositories on this disk, in every state, read where they lie."""
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from parsing_runs import MAIN, Repository, Result


def partial_clone(repository: Repository, path: Path, what: str = "blob:none") -> Path:
    subprocess.run(["git", "clone", "-q", "--no-checkout", f"--filter={what}", repository.path.as_uri(),
                    path], check=True)
    return path


def test_a_partial_clone_as_the_source(repository: Repository, parse: Callable[..., Result],
                                       parse_failure: Callable[..., str], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing content that nobody wants ends the run; or a wanted one is reported as a fault of the
    network, and tried again and again."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("tried again"))
    repository.commit({"a.kt": MAIN})
    part = partial_clone(repository, tmp_path / "part")
    subprocess.run(["git", "-C", part, "checkout", "-q"], check=True)
    repository.commit({"b.txt": b"text"})
    for command in (("fetch", "-q"), ("reset", "-q", "--soft", "origin/main")):
        subprocess.run(["git", "-C", part, *command], check=True)
    treeless = partial_clone(repository, tmp_path / "treeless", "tree:0")
    repository.path.rename(tmp_path / "moved")  # an older git would have the missing ones fetched from it
    assert parse(part).paths == ["a.kt"]
    message = parse_failure(part, options=("--extensions", ".txt"))
    assert "part: is a partial clone and lacks the content of b.txt; name the repository" in message
    assert "treeless: is a partial clone and lacks what its commit consists of" in parse_failure(treeless)


def test_a_head_that_names_no_branch(repository: Repository, parse: Callable[..., Result],
                                     parse_failure: Callable[..., str]) -> None:
    """A repository whose default branch was renamed is called empty, and nobody thinks of --revision."""
    repository.commit({"a.kt": MAIN})
    for number in range(11):
        repository.git("branch", f"side{number:02d}")
    repository.git("symbolic-ref", "HEAD", "refs/heads/master")
    message = parse_failure(repository.path)
    assert "its HEAD names a branch that does not exist" in message
    assert message.endswith("--revision: main, side00, side01, side02, side03, side04, side05, side06, "
                            "side07, side08 and 2 more")
    assert parse(repository.path, options=("--revision", "main")).paths == ["a.kt"]
    message = parse_failure(repository.path, options=("--revision", "HEADS"))
    assert "--revision HEADS: " in message
    assert "code has no such branch, tag or commit; its branches: main, " in message


def test_nothing_is_copied(repository: Repository, parse: Callable[..., Result], tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of gigabytes is copied before a file of it is read; or something is written into it."""
    repository.commit({"a.kt": MAIN, "b.bin": os.urandom(100_000)})
    before = {path: path.stat().st_mtime_ns for path in repository.path.rglob("*")}
    monkeypatch.setattr("pipeline.sources.git.run_git", lambda *arguments: pytest.fail("fetched"))
    for location in (repository.path, repository.path.as_uri()):
        result = parse(location)
        assert result.paths == ["a.kt"]
        assert result.manifest["sources"][0]["received_bytes"] == 0
    assert {path: path.stat().st_mtime_ns for path in repository.path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["worktree", "shallow", "sha256", "separate", "only remote branches"])
def test_states_of_a_repository(kind: str, repository: Repository, parse: Callable[..., Result],
                                tmp_path: Path) -> None:
    """A repository that git itself works in cannot be read here."""
    first = repository.commit({"a.kt": MAIN})
    repository.commit({"a.kt": b"val second = 2\n"})
    place = tmp_path / "place"
    if kind == "worktree":
        repository.git("worktree", "add", "-q", str(place), first)
    elif kind == "shallow":
        subprocess.run(["git", "clone", "-q", "--depth", "1", repository.path.as_uri(), place], check=True)
    elif kind == "separate":
        subprocess.run(["git", "clone", "-q", f"--separate-git-dir={tmp_path / 'apart'}", repository.path,
                        place], check=True)
    elif kind == "sha256":
        place.mkdir()
        for command in (["init", "-q", "--object-format=sha256"], ["add", "."],
                        ["-c", "user.name=t", "-c", "user.email=t", "commit", "-q", "-m", "c"]):
            (place / "a.kt").write_bytes(b"val second = 2\n")
            subprocess.run(["git", "-C", place, *command], check=True)
    else:
        subprocess.run(["git", "clone", "-q", repository.path, place], check=True)
        subprocess.run(["git", "-C", place, "checkout", "-q", "--detach"], check=True)
        subprocess.run(["git", "-C", place, "branch", "-q", "-D", "main"], check=True)
    assert parse(place).texts == [MAIN.decode() if kind == "worktree" else "val second = 2\n"]
    assert len(parse(place).provenance[0]["commit"]) == (64 if kind == "sha256" else 40)


def test_revisions_as_git_writes_them(repository: Repository, parse: Callable[..., Result],
                                      parse_failure: Callable[..., str], tmp_path: Path) -> None:
    """A revision that `git show` takes is refused; or a missing one is reported as something else."""
    first = repository.commit({"a.kt": MAIN})
    repository.commit({"a.kt": b"val second = 2\n"})
    for revision in ("HEAD~1", "main^", first[:8], f"{first}^{{commit}}"):
        assert parse(repository.path, options=("--revision", revision)).provenance[0]["commit"] == first
        assert parse(f"{repository.path}@{revision}").provenance[0]["commit"] == first
    subprocess.run(["git", "clone", "-q", "--depth", "1", repository.path.as_uri(), tmp_path / "shallow"],
                   check=True)
    message = parse_failure(tmp_path / "shallow", options=("--revision", "HEAD~1"))
    assert "no such branch, tag or commit (it is a shallow clone: git fetch --unshallow" in message


def test_a_worktree_whose_repository_has_moved(repository: Repository, parse_failure: Callable[..., str],
                                               tmp_path: Path) -> None:
    """A worktree that git cannot use either is read as a plain folder."""
    repository.commit({"a.kt": MAIN})
    repository.git("worktree", "add", "-q", str(tmp_path / "tree"))
    repository.path.rename(tmp_path / "moved")
    assert "its .git file names" in parse_failure(tmp_path / "tree")


def test_a_git_folder_that_is_no_repository(tmp_path: Path, parse: Callable[..., Result],
                                            parse_failure: Callable[..., str]) -> None:
    """The user is sent to his git settings, where it is the folder that is damaged; or a damaged one above
    the requested folder stops everything."""
    (tmp_path / "stray" / "sub").mkdir(parents=True)
    (tmp_path / "stray" / ".git").mkdir()
    (tmp_path / "stray" / "sub" / "a.kt").write_bytes(MAIN)
    assert "its .git is no repository (it has no HEAD)" in parse_failure(tmp_path / "stray")
    assert parse(tmp_path / "stray" / "sub").paths == ["a.kt"]


def test_a_folder_of_a_repository(repository: Repository, parse: Callable[..., Result],
                                  tmp_path: Path) -> None:
    """A part of a repository loses its commit, its licence, or brings what the repository ignores."""
    commit = repository.commit({"a.kt": MAIN, "app/b.kt": b"val b = 1\n", "app/x/c.kt": b"val c = 1\n",
                                "apple/d.kt": MAIN, "LICENSE": b"free", ".gitignore": b"*.gen.kt\n"})
    for name, text in (("app/e.gen.kt", "val e = 1\n"), ("drafts/f.kt", "val f = 1\n")):
        (repository.path / name).parent.mkdir(exist_ok=True)
        (repository.path / name).write_text(text)
    for location in (repository.path / "app", f"{repository.path}#app", f"{repository.path}#/app/"):
        result = parse(location)
        assert result.paths == ["app/b.kt", "app/x/c.kt"]
        assert {(row["repository"], row["commit"], row["license_file"]) for row in result.provenance} == {
            ("code", commit, "LICENSE")}
        assert result.manifest["sources"][0]["folder"] == "app"
    assert parse(f"{repository.path / 'app'}#x").paths == ["app/x/c.kt"]
    drafts = parse(repository.path / "drafts")  # no commit holds it
    assert (drafts.paths, drafts.provenance[0]["commit"]) == (["f.kt"], None)


def test_a_folder_that_is_not_there(repository: Repository, parse_failure: Callable[..., str]) -> None:
    """A typing error after the # collects nothing, or everything, without a word."""
    repository.commit({"a.kt": MAIN, "app/b.kt": MAIN})
    assert "has no folder ap; check the name after the #" in parse_failure(f"{repository.path}#ap")
    assert "leads out of the repository" in parse_failure(f"{repository.path}#../other")


def test_repositories_of_one_name(tmp_path: Path, parse: Callable[..., Result]) -> None:
    """Of two clones called `app`, nobody knows whose file a line is; or a remote's password is shown."""
    for name in ("one", "two", "three"):
        Repository(tmp_path / name / "app").commit({f"{name}.kt": f"val {name} = 1\n".encode()})
    remote = Repository(tmp_path / "cloned")
    remote.commit({"d.kt": b"val d = 1\n"})
    remote.git("remote", "add", "origin", "https://me:s3cret@example.org/team/app.git")
    result = parse(*(tmp_path / name / "app" for name in ("one", "two", "three")), remote.path)
    assert [row["repository"] for row in result.provenance] == [
        "one/app", "two/app", "three/app", "https://***@example.org/team/app.git"]
    assert [row["repository"] for row in parse(tmp_path / "one" / "app").provenance] == ["app"]


def test_settings_of_the_repository_run_nothing(repository: Repository, parse: Callable[..., Result],
                                                parse_failure: Callable[..., str], tmp_path: Path) -> None:
    """A repository that came as an archive starts a program by its own settings."""
    commit = repository.commit({"a.kt": MAIN, "b.kt": b"val b = 1\n"})
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    for name in ("core.fsmonitor", "core.pager", "core.sshCommand", "core.hooksPath", "core.askPass",
                 "core.gitProxy", "uploadpack.packObjectsHook", "remote.origin.uploadpack", "diff.external",
                 "alias.ls-tree", "credential.helper", "core.alternateRefsCommand"):
        repository.git("config", name, f"!{program}" if name.startswith("alias") else str(program))
    repository.git("config", "remote.origin.url", str(tmp_path / "elsewhere"))
    repository.git("config", "remote.origin.promisor", "true")
    repository.git("config", "extensions.partialClone", "origin")
    repository.git("config", "core.repositoryFormatVersion", "1")
    assert parse(repository.path).paths == ["a.kt", "b.kt"]
    blob = subprocess.run(["git", "-C", repository.path, "rev-parse", f"{commit}:b.kt"], check=True,
                          capture_output=True, text=True).stdout.strip()
    (repository.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    assert "lacks the content of b.kt" in parse_failure(repository.path)
    assert not (tmp_path / "ran").exists()


def test_an_object_that_is_missing_or_damaged(repository: Repository,
                                              parse_failure: Callable[..., str]) -> None:
    """A damaged repository gives a traceback, or a file less without a word."""
    commit = repository.commit({"a.kt": MAIN})
    blob = repository.git("rev-parse", f"{commit}:a.kt")
    place = repository.path / ".git" / "objects" / blob[:2] / blob[2:]
    place.chmod(0o644)
    place.write_bytes(b"damaged")
    assert "git" in parse_failure(repository.path)
    place.unlink()
    assert "lacks the content of a.kt; check the repository (git fsck)" in parse_failure(repository.path)
