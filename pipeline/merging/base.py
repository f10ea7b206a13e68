"""The base model: which it is, and whether it is the one that was trained on."""
import argparse
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from pipeline.hub.client import hub_errors, hub_files
from pipeline.model.device import model_hash
from pipeline.model.mergeable import ADAPTER_CONFIG
from pipeline.model.tokenizers import check_local_model
from pipeline.run.errors import PipelineError, looks_like_path


def choose_base(args: argparse.Namespace, config: dict[str, Any], adapter: Path) -> tuple[str, str | None]:
    """Return name and revision of the base model: --base_model, or what the adapter names."""
    named = config.get("base_model_name_or_path")
    if args.base_model:
        return args.base_model, None
    if not named:
        raise PipelineError(f"{adapter / ADAPTER_CONFIG}: names no base model; say which by --base_model")
    if not Path(args.hf_repository).is_dir() and looks_like_path(named):
        raise PipelineError(f"--hf_repository {args.hf_repository}: its adapter names a local path as its "
                            "base model; say which base by --base_model")
    return named, config.get("revision")


def fetch_base(name: str, revision: str | None) -> Path:
    """Return the local folder of the base model; only safetensors and JSON are downloaded."""
    check_local_model(name)
    folder = Path(name)
    if not folder.is_dir():
        with hub_errors("base model", name):
            hub_files(name, revision)
            folder = Path(snapshot_download(name, revision=revision,
                                            allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model",
                                                            "*.jinja", "*.tiktoken"],
                                            ignore_patterns=["*/*"]))
    return folder


def check_trained_base(manifest: dict[str, Any] | None, name: str, base: Path) -> None:
    """Raise PipelineError where the base model is not the one that train.py wrote into the manifest.

    That is by its weights, or by its commit on the hub.
    """
    expected = (manifest or {}).get("base_model_hash")
    if not expected:
        return  # an adapter from elsewhere
    # the hub's cache names a snapshot's folder for its commit
    found = model_hash(name, None) if Path(name).is_dir() else base.name
    if found != expected:
        raise PipelineError(f"base model {name}: is not the one that the adapter was trained on "
                            f"({found[:12]}, not {expected[:12]}); get that one, or say --base_model {name} "
                            "to merge into this one all the same")
