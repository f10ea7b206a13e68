"""The stages on a GPU, by a device that is not there (fake_cuda.py): the tests of gpu_checks.py.

They run in a process of their own, for the device has to be there before torch is imported.
"""
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("gpu_checks.py")
NAMES = re.findall(r"^def (test_\w+)", CHECKS.read_text(encoding="utf-8"), re.MULTILINE)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the guard of the device")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each test of gpu_checks.py said in each of its cases: nothing, or why it failed."""
    folder = tmp_path_factory.mktemp("gpu")
    report = folder / "report.xml"
    done = subprocess.run([sys.executable, "-m", "pytest", str(CHECKS), "-p", "no:cacheprovider",
                           f"--junitxml={report}", f"--basetemp={folder / 'tests'}"], cwd=CHECKS.parents[1],
                          capture_output=True, text=True, timeout=1800)
    assert report.is_file(), done.stdout + done.stderr
    found = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  written by pytest, a moment ago
        said = "".join(f"{case.get('name')}: {part.text}" for part in case
                       if part.tag in ("failure", "error"))
        found[case.get("name").partition("[")[0]].append(said)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name: str, outcomes: dict[str, list[str]]) -> None:
    """What holds on a CPU does not hold on a GPU; gpu_checks.py says what breaks for the user."""
    assert outcomes[name]
    assert not any(outcomes[name]), "\n".join(outcomes[name])
