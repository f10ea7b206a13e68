"""pipeline/sources/selection.py: --include and --exclude."""
from collections.abc import Callable
from pathlib import Path

import pytest
from parsing_runs import MAIN, Repository, Result

FILES = ("src/main/a.kt", "src/test/b.kt", "src/testData/c.kt", "tools/golden/x/d.kt", "e.kt", "src/E.KT")


@pytest.mark.parametrize(("options", "paths", "skipped"), [
    (("--exclude", "testData/"), ["e.kt", "src/main/a.kt", "src/test/b.kt", "tools/golden/x/d.kt"],
     {"--exclude testData/": ["src/testData/c.kt"]}),
    (("--exclude", "testData/", "**/golden/**", "test"), ["e.kt", "src/main/a.kt"],
     {"--exclude testData/": ["src/testData/c.kt"], "--exclude **/golden/**": ["tools/golden/x/d.kt"],
      "--exclude test": ["src/test/b.kt"]}),
    (("--exclude", "/*.kt"), ["src/main/a.kt", "src/test/b.kt", "src/testData/c.kt", "tools/golden/x/d.kt"],
     {"--exclude /*.kt": ["e.kt"]}),
    (("--exclude", "src/**", "!src/main/**"), ["e.kt", "src/main/a.kt", "tools/golden/x/d.kt"],
     {"--exclude src/**": ["src/test/b.kt", "src/testData/c.kt"]}),
    (("--include", "src/"), ["src/main/a.kt", "src/test/b.kt", "src/testData/c.kt"],
     {"not in --include": ["e.kt", "tools/golden/x/d.kt"]}),
    (("--include", "src/", "tools/", "--exclude", "test*/"), ["src/main/a.kt", "tools/golden/x/d.kt"],
     {"--exclude test*/": ["src/test/b.kt", "src/testData/c.kt"], "not in --include": ["e.kt"]})])
@pytest.mark.parametrize("kind", ["repository", "plain folder"])
def test_patterns(kind: str, options: tuple, paths: list, skipped: dict, tmp_path: Path,
                  parse: Callable[..., Result]) -> None:
    """A pattern leaves out, or lets in, other files than it would in a .gitignore; or nobody sees which."""
    if kind == "repository":
        Repository(tmp_path / "code").commit(dict.fromkeys(FILES, MAIN))
    else:
        for name in FILES:
            (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "code" / name).write_bytes(MAIN)
    result = parse(tmp_path / "code", options=options)
    assert result.paths == paths
    assert result.skipped == skipped
    assert {f"skipped, {reason}": len(left) for reason, left in skipped.items()}.items() \
        <= result.manifest["counts"].items()


def test_a_pattern_that_matches_nothing_is_named(repository: Repository, parse: Callable[..., Result],
                                                 parse_failure: Callable[..., str],
                                                 capfd: pytest.CaptureFixture) -> None:
    """A misspelled pattern leaves the test data in, and nobody notices."""
    repository.commit({"a.kt": MAIN, "testData/b.kt": MAIN})
    parse(repository.path, options=("--exclude", "testdata/", "testData/"))
    said = capfd.readouterr().out
    assert "WARNING: --exclude testdata/ matched no file" in said
    assert "--exclude testData/ matched" not in said
    message = parse_failure(repository.path, options=("--exclude", "*"))
    assert "no usable file ending in .kt (found 0, 2 --exclude *)" in message
