"""The losses by step: the curve, its picture, and the summary of a run."""
import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pipeline.run.errors import PipelineError


def training_curve(log_history: list[dict[str, float]], examples_per_step: int) -> list[dict[str, float]]:
    """Return {"step", "examples", and "train_loss" or "validation_loss"} entries in order of the steps.

    With a training loss goes the "learning_rate", with a validation loss the "replay_loss", if there is one.
    """
    curve = []
    for entry in log_history:
        row = {"step": entry["step"], "examples": entry["step"] * examples_per_step}
        for key, name in (("loss", "train_loss"), ("eval_loss", "validation_loss"),
                          ("eval_one_chunk_loss", "one_chunk_loss"), ("eval_replay_loss", "replay_loss"),
                          ("eval_infilling_loss", "infilling_loss"),
                          ("eval_repository_loss", "repository_loss"), ("learning_rate", "learning_rate")):
            if key in entry:
                row[name] = entry[key]
        if "train_loss" in row or "validation_loss" in row:
            curve.append(row)
    return curve


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    """Draw training and validation loss against the number of examples as a PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("train_loss", "training (mean since the last point)", "-"),
                              ("validation_loss", "validation", "o-"),
                              ("one_chunk_loss", "validation, behind one chunk", "^-."),
                              ("repository_loss", "validation, behind pieces", "v-."),
                              ("replay_loss", "replay, not trained on", "s--"),
                              ("infilling_loss", "validation, middles", "d:")):
        points = [(row["examples"], row[key]) for row in curve if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="examples", ylabel="loss (nats a token)", title="Training curve")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # beside the points
    figure.savefig(path, dpi=120)


def finish(trainer: Any, args: argparse.Namespace,
           train_seconds: float) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Validate the last step, put the best adapter into the model, and return the summary and the curve."""
    last = trainer.state.global_step
    if not any("eval_loss" in entry and entry["step"] == last for entry in trainer.state.log_history):
        trainer.evaluate()
    if "weights" not in trainer.best:
        raise PipelineError("no validation loss was finite; lower --learning_rate")
    if trainer.best["step"] != last:
        trainer.restore_best()
    curve = training_curve(trainer.state.log_history, args.examples_per_step)
    padded = torch.tensor(float(trainer.padded_tokens), device=trainer.args.device)
    padded = trainer.accelerator.reduce(padded, "sum").item()
    validated = [row for row in curve if "validation_loss" in row]
    best = next(row for row in validated if row["step"] == trainer.best["step"])
    summary = {"train_seconds": round(train_seconds, 1), "steps": last, "best_step": best["step"],
               "real_token_share": round(trainer.real_tokens / max(1, padded), 4),
               "tokens_per_second": round(trainer.real_tokens / max(1e-9, trainer.step_seconds), 1),
               "validation_loss_before": validated[0]["validation_loss"],
               "validation_loss_after": best["validation_loss"]}
    for name in ("one_chunk_loss", "repository_loss", "replay_loss", "infilling_loss"):
        if name in best:
            summary |= {f"{name}_before": validated[0][name], f"{name}_after": best[name]}
    return summary, curve
