"""What a model answered on a set, and by what results are keyed."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ROLES = ("base", "fine_tuned")


class ModelOnSet(NamedTuple):
    """One of the two models on one set."""
    role: str  # of ROLES
    set_name: str


@dataclass
class Answers:
    """A model's predictions on a set, and the losses of its references, an entry per example."""
    texts: list[str]  # as they were decoded
    ended: list[bool]  # whether the prediction ended by itself, before its budget
    losses: list[tuple[float, int]]  # (nats, tokens) of the reference

    def select(self, positions: Sequence[int]) -> "Answers":
        """Return the answers of some examples."""
        return Answers(*([values[i] for i in positions] for values in (self.texts, self.ended, self.losses)))
