"""pipeline/sources/licenses.py: which licence a file is under, and what SPDX calls it."""
from collections.abc import Callable

import pytest
from identify.vendor.licenses import LICENSES
from parsing_runs import MAIN, Repository, Result

from pipeline.sources.licenses import UNKNOWN, find_license, spdx_identifier

TEXTS = {name: text.encode() for name, text in LICENSES}


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


@pytest.mark.parametrize(("data", "identifier"), [
    (TEXTS["MIT"], "MIT"), (TEXTS["Apache-2.0"], "Apache-2.0"), (TEXTS["GPL-3.0"], "GPL-3.0"),
    (TEXTS["MIT"].replace(b"\n", b"\r\n").replace(b"[fullname]", b"J\xf6rg"), "MIT"),
    (b"Copyright 2019 A\n\n" + TEXTS["BSD-3-Clause"], "BSD-3-Clause"),
    (b"SPDX-License-Identifier: EUPL-1.2\n", "EUPL-1.2"),
    (b"All rights reserved.", UNKNOWN), (b"", UNKNOWN), (b"\0\xff" * 100, UNKNOWN),
    (TEXTS["MIT"] + b"\nThis software shall be used for good and by nobody who sells it." * 3, UNKNOWN)])
def test_what_spdx_calls_a_licence(data: bytes, identifier: str) -> None:
    """A company learns from code under a licence that it does not know, or under another name."""
    assert spdx_identifier(data) == identifier


FILES = {"a.kt": MAIN, "LICENSE": TEXTS["MIT"], "vendor/one/b.kt": b"val b = 1\n",
         "vendor/one/COPYING": TEXTS["GPL-3.0"], "vendor/one/deep/c.kt": b"val c = 1\n",
         "two/d.kt": b"val d = 1\n", "two/LICENSE-MIT": TEXTS["MIT"],
         "two/LICENSE-APACHE": TEXTS["Apache-2.0"], "three/e.kt": b"val e = 1\n",
         "three/License.txt": b"ask us", "three/LicenseCheck.kt": b"val f = 1\n",
         "docs/LICENSE": b"governs no code"}


@pytest.mark.parametrize("kind", ["repository", "plain folder"])
def test_each_file_has_the_nearest_licence(kind: str, repository: Repository, parse: Callable[..., Result],
                                           capfd: pytest.CaptureFixture) -> None:
    """Files of a copied library are listed under the licence of the code base that they were copied
    into."""
    repository.commit(FILES)
    if kind == "plain folder":
        (repository.path / ".git").rename(repository.path.with_name("git"))
    result = parse(repository.path)
    assert {row["path"]: (row["license_file"], row["license"]) for row in result.provenance} == {
        "a.kt": ("LICENSE", "MIT"), "vendor/one/b.kt": ("vendor/one/COPYING", "GPL-3.0"),
        "vendor/one/deep/c.kt": ("vendor/one/COPYING", "GPL-3.0"),
        "two/d.kt": ("two/LICENSE-APACHE", "Apache-2.0 AND MIT"),
        "three/e.kt": ("three/License.txt", UNKNOWN), "three/LicenseCheck.kt": ("three/License.txt", UNKNOWN)}
    source = result.manifest["sources"][0]
    assert (source["license"], source["license_file"]) == ("MIT", "LICENSE")
    assert source["nested_licenses"] == {
        "three/License.txt": UNKNOWN, "two/LICENSE-APACHE": "Apache-2.0", "two/LICENSE-MIT": "MIT",
        "vendor/one/COPYING": "GPL-3.0"}
    said = capfd.readouterr().out
    assert "licence MIT (LICENSE)" in said
    assert "other licences in its folders: Apache-2.0 1, GPL-3.0 1, MIT 1, NOASSERTION 1" in said


def test_other_licences_are_refused(repository: Repository, parse: Callable[..., Result],
                                    parse_failure: Callable[..., str]) -> None:
    """--licenses lets through what it does not name, of the code base or of a folder in it."""
    repository.commit(FILES)
    result = parse(repository.path, options=("--licenses", "mit"))
    assert result.paths == ["a.kt"]
    assert result.skipped == {
        "licence Apache-2.0 AND MIT": ["two/d.kt"],
        "licence GPL-3.0": ["vendor/one/b.kt", "vendor/one/deep/c.kt"],
        "licence NOASSERTION": ["three/LicenseCheck.kt", "three/e.kt"]}
    assert parse(repository.path, options=("--licenses", "MIT", "Apache-2.0")).paths == ["a.kt", "two/d.kt"]
    message = parse_failure(repository.path, options=("--licenses", "Apache-2.0"))
    assert "code is under none of them: LICENSE is MIT; add it to --licenses" in message
    # what is read of it is under another licence than the whole
    vendored = parse(f"{repository.path}#vendor", options=("--licenses", "GPL-3.0"))
    assert vendored.paths == ["vendor/one/b.kt", "vendor/one/deep/c.kt"]
    (repository.path / "LICENSE").unlink()
    repository.commit()
    assert "no licence file was found" in parse_failure(repository.path, options=("--licenses", "MIT"))
