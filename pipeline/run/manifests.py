"""Manifests: what made an output, from what, and whether it is still what was written."""
import argparse
import contextlib
import hashlib
import json
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.run.errors import PipelineError
from pipeline.run.hashes import sha256_file
from pipeline.run.outputs import MANIFEST, write_json
from pipeline.run.stage import public_arguments

MANIFEST_VERSION = 1
RECORDED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers",
                     "huggingface_hub", "GitPython", "accelerate", "rapidfuzz", "numpy",
                     "pandas")
# the files of a model folder that are loaded; its card may be edited
MODEL_FILES = r".*\.(safetensors|json|txt|model|jinja)"


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an output lies: in a folder, or beside a file as STEM.manifest.json."""
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.stem}.{MANIFEST}")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a result can depend on."""
    installed = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def write_manifest(path: Path, args: argparse.Namespace, outputs: dict[str, str], started: float,
                   **details: Any) -> None:
    """Write the manifest to the file `path`: what made the `outputs` ({name: SHA-256}), from what, and in
    how many seconds.

    `started` is the `time.time()` at which the stage began; `details` are the stage's own entries
    (`inputs`, `counts`, ...), JSON values.
    """
    write_json(path, sealed_manifest({"manifest_version": MANIFEST_VERSION, "stage": Path(sys.argv[0]).stem,
                                      "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                                      "arguments": public_arguments(args),
                                      "seconds": round(time.time() - started, 1), "versions": versions(),
                                      **details, "outputs": outputs}))


def sealed_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest with the SHA-256 of all its other entries, so that a change to it is detected, as
    is one to an output."""
    entries = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "checksum"}))
    return {**entries, "checksum": hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()}


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of the output at `path`, or None where it has none.  PipelineError if it is
    damaged."""
    file = manifest_path(path)
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise PipelineError(f"{file}: not valid JSON; write the output again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("outputs"), dict):
        raise PipelineError(f"{file}: is not a manifest of this pipeline; write the output again")
    if "checksum" in manifest and manifest["checksum"] != sealed_manifest(manifest)["checksum"]:
        raise PipelineError(f"{file}: has changed since it was written (its checksum differs); write the "
                            "output again, or delete that manifest to use the output as it is")
    return manifest


def check_manifest(path: Path, only: str = ".*") -> dict[str, Any] | None:
    """Return the manifest of `path` after comparing every file that it names with its hash; None without one.

    `only`: regular expression of the names that are compared, for a stage that reads no others.
    Raises PipelineError that names the first file which is missing or has changed.
    """
    manifest = read_manifest(path)
    folder = path if path.is_dir() else path.parent
    for name, expected in (manifest or {"outputs": {}})["outputs"].items():
        if not re.fullmatch(only, name):
            continue
        file = folder / name
        if not file.is_file():
            raise PipelineError(f"{file}: is missing, but {manifest_path(path)} names it; write the output "
                                "again")
        if sha256_file(file) != expected:
            raise PipelineError(f"{file}: has changed since it was written (SHA-256 differs from "
                                f"{manifest_path(path)}); write the output again, or delete that manifest to "
                                "use the file as it is")
    return manifest


def taught(manifest: dict[str, Any] | None, entry: str) -> Any:
    """Return what a model's manifest, or that of the adapter that was merged into it, says under `entry` of
    how it was taught; None where neither says anything."""
    manifest = manifest or {}
    return manifest.get(entry) or (manifest.get("adapter_manifest") or {}).get(entry)
