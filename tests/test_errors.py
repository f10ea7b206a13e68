"""pipeline/run/errors.py: secrets, names and messages."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.errors import first_line, looks_like_path, redact


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


@given(user=st.from_regex(r"[a-z]{3,9}", fullmatch=True),
       password=st.from_regex(r"[A-Z0-9@:!$%&]{6,12}", fullmatch=True))
def test_no_password_survives(user: str, password: str) -> None:
    """A password with odd characters is printed in part."""
    shown = redact(f"cannot read https://{user}:{password}@example.org/x.git: no")
    assert shown == "cannot read https://***@example.org/x.git: no"


@pytest.mark.parametrize(("name", "path"), [("./a", True), ("/a/b", True), ("~/a", True), ("../a", True),
                                            ("a/b/c", True), ("owner/name", False), ("name", False),
                                            ("owner/name-1.5", False)])
def test_looks_like_path(name: str, path: bool) -> None:
    """A local path is looked up on the hub, or a hub name in the folder."""
    assert looks_like_path(name) == path


def test_first_line() -> None:
    """An error message of many lines fills the screen, or an empty one says nothing."""
    assert first_line(ValueError("\n  what \nwhere")) == "what"
    assert first_line(KeyError()) == "KeyError"
