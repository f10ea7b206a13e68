"""A model that is used: what it is, and where."""
from dataclasses import dataclass


@dataclass
class ModelSource:
    """A model to be evaluated: what it is, and where."""
    name: str
    identity: str  # hub commit, or combined hash of the folder's weights and settings
    adapter: str | None = None  # its folder, if it is one
    commit: str | None = None  # on the hub
    weights_hash: str | None = None  # of a folder's weights alone
