"""pipeline/sources/folders.py: which files of a plain folder are read."""
from collections.abc import Callable
from pathlib import Path

from parsing_runs import Result

from pipeline.sources.source import blob_id


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
