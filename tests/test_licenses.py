"""pipeline/sources/licenses.py: which licence a file is under, and what SPDX calls it."""
import pytest

from pipeline.sources.licenses import find_license


@pytest.mark.parametrize(("paths", "found"), [
    (["LICENSE", "a.kt"], "LICENSE"),
    (["license/LICENSE.txt", "a.kt"], "license/LICENSE.txt"),
    (["COPYING", "LICENSE.md"], "LICENSE.md"),
    (["COPYING"], "COPYING"),
    (["UNLICENSE"], "UNLICENSE"),
    (["third/LICENSE", "src/License.kt"], None),
    (["a.kt"], None),
])
def test_find_license(paths: list[str], found: str | None) -> None:
    """The wrong licence, or none, is recorded for a code base."""
    assert find_license(paths) == found
