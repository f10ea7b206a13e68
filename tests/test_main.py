"""`python -m pipeline`: its two commands, as a user types them."""
import subprocess
import sys
from pathlib import Path

import pytest
from output_folders import our_folder

ROOT = Path(__file__).resolve().parents[1]


def typed(*arguments: str) -> subprocess.CompletedProcess:
    """Run `python -m pipeline` in the project's folder."""
    return subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)


def test_lineage_is_printed(tmp_path: Path) -> None:
    """The command that the README names does not exist, or shows its own machinery."""
    done = typed("lineage", str(our_folder(tmp_path / "out")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}  ")
    assert "files match" in done.stdout
    assert done.stderr == f"pipeline: path={tmp_path / 'out'}\n"


@pytest.mark.parametrize(("arguments", "message"), [
    (("lineage", "nowhere"), "no manifest says where it comes from"),
    (("push", "nowhere", "owner/name"), "push nowhere: no such folder"),
    (("push", "nowhere", "owner/name", "--delete", "("), "not a regular expression"),
])
def test_a_mistake_is_told_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    """A wrong path or pattern ends in a traceback."""
    done = typed(*arguments)
    assert done.returncode == 1
    _, line = done.stderr.splitlines()
    assert line.startswith("pipeline: error: ")
    assert message in line


@pytest.mark.parametrize("arguments", [(), ("publish",), ("lineage",), ("push", "folder")])
def test_an_incomplete_command_shows_how_it_is_typed(arguments: tuple[str, ...]) -> None:
    """The user is left with a traceback where a word is missing."""
    done = typed(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m pipeline")
