"""The harness of tests/faults.py on a few faults of each kind and stage; all of them take half an hour."""
import re
import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).with_name("faults.py")


def test_a_few_faults_of_every_kind() -> None:
    """A killed run, a full disk or a damaged file costs the user his last result, or shows a traceback."""
    done = subprocess.run([sys.executable, str(FAULTS), "--at_most", "1"], capture_output=True, text=True,
                          timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    found = re.findall(r"^\| ([^|]+) \| (\d+) \|", done.stdout, re.MULTILINE)
    counts = {kind: int(number) for kind, number in found}
    for kind in ("SIGTERM", "SIGINT", "SIGKILL", "no space left", "two at once"):
        assert counts[kind] == 5, kind
    assert counts["damaged checkpoint or cache"] == 2
    assert counts["all"] >= 5 * 6 + 2


def test_a_defect_is_seen(tmp_path: Path) -> None:
    """The harness finds nothing because it looks at nothing."""
    sys.path.insert(0, str(FAULTS.parent))
    import faults

    stage = faults.Stage("stage", (), (), (), ("out.txt",), r".*\.txt")
    bench = object.__new__(faults.Bench)
    bench.stage, bench.before, bench.after = stage, {"out.txt": "0"}, {"out.txt": "1"}
    (tmp_path / "out.txt").write_text("half of it")
    assert bench.state(tmp_path) == "mixed"
    run = faults.Run(1, "Traceback (most recent call last):\n", 0.0, 1, 1, 1)
    assert "a traceback" in faults.after_interruption(bench, tmp_path, run, 1)[1]
    assert "exit code 1 and not 143" in faults.after_interruption(bench, tmp_path, run, 143)[1]
    run = faults.Run(1, "stage.py: error: no space left\n", 0.0, 1, 1, 1)
    assert "a mixture" in faults.after_interruption(bench, tmp_path, run, 1)[1]
