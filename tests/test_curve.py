"""pipeline/training/curve.py: the losses by step, and their picture."""
from pathlib import Path

from pipeline.training.curve import draw_curve, training_curve

LOG = [{"step": 0, "eval_loss": 3.0, "eval_one_chunk_loss": 3.5, "eval_replay_loss": 2.0},
       {"step": 2, "loss": 2.5, "learning_rate": 0.1},
       {"step": 2, "eval_loss": 2.0, "eval_one_chunk_loss": 2.75, "eval_replay_loss": 2.1},
       {"step": 2, "train_runtime": 9.0}]


def test_curve_has_every_loss_at_its_step() -> None:
    """A loss stands at another number of examples, under another name, or beside what is no loss."""
    assert training_curve(LOG, 4) == [
        {"step": 0, "examples": 0, "validation_loss": 3.0, "one_chunk_loss": 3.5, "replay_loss": 2.0},
        {"step": 2, "examples": 8, "train_loss": 2.5, "learning_rate": 0.1},
        {"step": 2, "examples": 8, "validation_loss": 2.0, "one_chunk_loss": 2.75, "replay_loss": 2.1}]


def test_curve_is_drawn_with_and_without_losses_of_each_kind(tmp_path: Path) -> None:
    """A run without files or replay, or one that ended before its first training loss, is a traceback."""
    for number in range(1, len(LOG) + 1):
        draw_curve(training_curve(LOG[:number], 4), tmp_path / "curve.png")
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    draw_curve(training_curve([{"step": 0, "eval_loss": 3.0}], 4), tmp_path / "curve.png")
