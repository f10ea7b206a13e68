"""A git repository for parse_data.py, and what a run of it wrote: what the tests of stage 1 share."""
import json
import subprocess
from pathlib import Path

MAIN = b"fun main() {\n    println(1)\n}\n"


class Repository:
    """A small git repository, made with the git command."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("config", "uploadpack.allowFilter", "true")  # as the large servers do

    def git(self, *arguments: str) -> str:
        settings = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "core.autocrlf=false")
        return subprocess.run(["git", *settings, *arguments], cwd=self.path, check=True, capture_output=True,
                              text=True, errors="surrogateescape").stdout.strip()

    def commit(self, files: dict[str, bytes] | None = None) -> str:
        for name, data in (files or {}).items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "c")
        return self.git("rev-parse", "HEAD")


class Result:
    """The three files that a run wrote."""

    def __init__(self, output: Path):
        provenance = output.with_name(f"{output.stem}.provenance.jsonl")
        self.raw = [json.loads(line) for line in output.read_bytes().splitlines()]
        self.texts = [row["file_text"] for row in self.raw]
        self.provenance = [json.loads(line) for line in provenance.read_bytes().splitlines()]
        self.paths = [row["path"] for row in self.provenance]
        self.manifest = json.loads(output.with_name(f"{output.stem}.manifest.json").read_bytes())
        skipped = self.manifest["sources"][0]["skipped"]
        self.skipped = {reason: paths for reason, paths in skipped.items() if paths}
        self.bytes = output.read_bytes() + provenance.read_bytes()
