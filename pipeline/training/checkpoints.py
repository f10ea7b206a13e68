"""Checkpoints: which are whole, and whether a run may go on from one."""
import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.run.errors import PipelineError, Terminated
from pipeline.run.hashes import hash_files
from pipeline.run.manifests import versions
from pipeline.run.stage import public_arguments

CHECKPOINT_HASHES = "pipeline_checkpoint.json"  # written last: a checkpoint without it is not whole
BEST_ADAPTER = "best_adapter.safetensors"  # in a checkpoint: the adapter of the best validation so far
# What a resumed run must share with the run that it goes on with; no other setting changes what is learned.
RESUME_SETTINGS = ("model_name_or_path", "dataset", "max_train_samples", "max_validation_samples",
                   "quantization", "precision", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules",
                   "use_rslora", "learning_rate", "lr_scheduler_type", "examples_per_step",
                   "num_train_epochs", "max_steps", "max_length", "replay_fraction", "torch_compile", "seed",
                   "train_on", "sequence_tokens", "end_of_text", "fim_rate", "deterministic",
                   "repository_tokens", "repository_fraction", "method_fraction", "max_file_tokens")


def resume_settings(args: argparse.Namespace, identities: dict[str, Any], device: str) -> dict[str, Any]:
    """Return what a resumed run must share with the run that wrote a checkpoint."""
    values = {key: value for key, value in public_arguments(args).items() if key in RESUME_SETTINGS}
    return {**values, **identities, "device": device, "processes": os.environ.get("WORLD_SIZE", "1"),
            "torch": versions().get("torch")}


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoint folders, the newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: -int(p.name.rpartition("-")[2]))


def find_checkpoint(folder: Path, settings: dict[str, Any]) -> Path | None:
    """Return the newest checkpoint that is whole; say which were passed over and why.

    Raises PipelineError naming the first difference where that checkpoint is of a run with other settings.
    """
    for checkpoint in checkpoints_in(folder):
        try:
            seal = json.loads((checkpoint / CHECKPOINT_HASHES).read_bytes())
        except (OSError, ValueError):
            print(f"{checkpoint.name}: not complete, passed over", file=sys.stderr)
            continue
        found = hash_files(checkpoint)
        found.pop(CHECKPOINT_HASHES)
        if found != seal["files"]:
            changed = next(n for n in sorted(found.keys() | seal["files"].keys())
                           if found.get(n) != seal["files"].get(n))
            print(f"{checkpoint.name}: {changed} has changed since it was written, passed over",
                  file=sys.stderr)
            continue
        for key, value in settings.items():
            if seal["settings"].get(key) != value:
                raise PipelineError(f"--resume: {key} is {value!r} now and was {seal['settings'].get(key)!r} "
                                    f"when {checkpoint} was written; restore it, or start anew with "
                                    "--overwrite")
        return checkpoint
    return None


def prepare_checkpoint_folder(folder: Path, args: argparse.Namespace,
                              settings: dict[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, or None for a new run.

    Raises PipelineError where the user has to choose.
    """
    existing = checkpoints_in(folder) if folder.is_dir() else []
    if args.resume:
        checkpoint = find_checkpoint(folder, settings) if existing else None
        print(f"going on from {checkpoint}" if checkpoint else "nothing to resume: starting at step 0")
        return checkpoint
    if existing and not args.overwrite:
        raise PipelineError(f"{folder}: holds {existing[0].name} of a run that has not ended; go on with it "
                            "by --resume, or start anew with --overwrite")
    for checkpoint in existing:
        shutil.rmtree(checkpoint)
    return None


def stop_if_signalled(number: int | None, checkpoints: Path) -> None:
    """Raise what the signal asked for, now that the checkpoint is written."""
    if number is None:
        return
    newest = checkpoints_in(checkpoints)[0]
    print(f"stopped; {newest} is complete: the same command with --resume goes on from it", file=sys.stderr)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def choose_start(folder: Path, args: argparse.Namespace, settings: dict[str, Any],
                 processes: int) -> Path | None:
    """Return the checkpoint that all processes go on from, or None.

    The first of them looks and tells the others.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    found = [prepare_checkpoint_folder(folder, args, settings) if first else None]
    if processes > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]
