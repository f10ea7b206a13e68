"""Where an output comes from, according to the manifests."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.run.errors import PipelineError, redact
from pipeline.run.hashes import combined_hash, sha256_file
from pipeline.run.manifests import manifest_path, read_manifest

# What each stage reads: the argument that names it, and the entry with a copy of its manifest at that time.
INPUTS_OF_STAGE = {
    "preprocess_data": (("input_file", None),),
    "train": (("dataset", "dataset_manifest"),),
    "merge_lora": (("hf_repository", "adapter_manifest"),),
    "benchmarking": (("hf_repository", "fine_tuned_manifest"), ("dataset", "dataset_manifest")),
}
FILES_MATCH = "files match"


def lineage(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (line, whether it reports a change) for the output at `path`, each stage before it, and the code
    bases.

    The copy of its input's manifest that a stage keeps is decisive; what lies at that place now is compared
    with it.
    """
    output = path.parent if path.is_file() and not manifest_path(path).is_file() else path
    manifest = read_manifest(output)
    if manifest is None or (output != path and path.name not in manifest["outputs"]):
        raise PipelineError(f"{path}: no manifest says where it comes from; name an output of one of the "
                            "five stages")
    change = changed_file(output, manifest)
    yield from _lineage_of(str(output), manifest, change or FILES_MATCH, bool(change), set())


def changed_file(output: Path, manifest: dict[str, Any]) -> str | None:
    """Return what is wrong with the first file that is missing or differs from the manifest, or None."""
    folder = output if output.is_dir() else output.parent
    for name, digest in manifest["outputs"].items():
        if not (folder / name).is_file():
            return f"MISSING: {name}"
        if sha256_file(folder / name) != digest:
            return f"CHANGED: {name}"
    return None


def _lineage_of(place: str, manifest: dict[str, Any], state: str, changed: bool,
                seen: set[str]) -> Iterator[tuple[str, bool]]:
    identity = combined_hash(manifest["outputs"])
    if identity in seen:
        return  # the data set that a benchmark and its model share
    seen.add(identity)
    stage, arguments = str(manifest.get("stage")), _mapping(manifest.get("arguments"))
    inputs = [(str(arguments[name]), manifest.get(entry)) for name, entry in INPUTS_OF_STAGE.get(stage, ())
              if arguments.get(name)]
    base = {"train": arguments.get("model_name_or_path"), "merge_lora": manifest.get("base_model"),
            "benchmarking": arguments.get("base_model")}.get(stage)
    origins = [name for name, _ in inputs] + ([f"base model {base}"] if base else [])
    yield _line(place, f"{stage}.py", str(manifest.get("created"))[:10], f"sha256 {identity[:12]}…", state,
                f"from {', '.join(origins)}" if origins else ""), changed
    followed = False
    for name, then in inputs:
        origin, state, changed = _input_now(Path(name), then if "outputs" in _mapping(then) else None,
                                            manifest)
        if origin is None:
            yield _line(name, state), changed
        else:
            followed = True
            yield from _lineage_of(name, origin, state, changed, seen)
    for source in manifest.get("sources") or [] if not followed else []:
        yield _line(_mapping(source).get("repository"),
                    f"commit {_mapping(source).get('commit') or 'none: a plain folder'}"), False


def _input_now(path: Path, then: dict[str, Any] | None,
               reader: dict[str, Any]) -> tuple[dict[str, Any] | None, str, bool]:
    """Return (manifest to follow, state of the input at `path`, whether it has changed)."""
    if not path.exists():
        return then, "is not here (removed, in another folder, or on the hub), not compared", False
    now = read_manifest(path)
    if now is None:
        return then, "has no manifest, not compared", False
    used = _mapping(reader.get("inputs"))
    # a data set written again with the same rows has the same data_hash, though other files may differ
    same = (then is None or then["outputs"] == now["outputs"]
            or then.get("data_hash", 0) == now.get("data_hash"))
    if not same or any(now["outputs"].get(name, digest) != digest for name, digest in used.items()):
        return then, f"WRITTEN AGAIN on {str(now.get('created'))[:10]}", True
    change = changed_file(path, now)
    return now, change or FILES_MATCH, bool(change)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # a manifest from elsewhere may hold anything


def _line(*parts: object) -> str:
    """Return the parts on one line, without control characters."""
    return redact("  ".join("".join(c if c.isprintable() else "?" for c in str(part))
                            for part in parts if part))
