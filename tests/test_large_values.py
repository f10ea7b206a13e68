"""pipeline/data/large_values.py: the values that cannot serve, found in a quick look."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.large_values import LARGE_VALUE, has_large_value


@pytest.mark.parametrize(("text", "found"), [
    ("9" * 40, True), ("9" * 39, False), ("1" * 39 + " " + "1" * 39, False), ("0x" + "1" * 40 + "L", True),
    ("x" * 200, True), ("x" * 199, False), ("x" * 199 + "\n" + "x" * 199, False), ("", False)])
def test_large_values(text: str, found: bool) -> None:
    """Hundreds of digits or of base 64 reach the model, or code is left out that has none."""
    assert has_large_value(text) is found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["1" * 39, "2" * 40, "a" * 199, "b" * 200, "x", "1",
                                 " ", "\n", "\u2003", "\x1c", "é"]), max_size=12).map("".join))
def test_the_quick_look_for_large_values_finds_what_the_pattern_finds(text: str) -> None:
    """A file with a value of hundreds of characters passes as one without."""
    assert has_large_value(text) == (LARGE_VALUE.search(text) is not None)
