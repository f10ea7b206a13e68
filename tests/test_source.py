"""pipeline/sources/source.py: how one file is read."""
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.source import blob_id, decode_source


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
