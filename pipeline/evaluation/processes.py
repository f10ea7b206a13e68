"""The processes that torchrun starts, which share the examples of a set out."""
import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from pipeline.model.device import take_device


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun started together, and which of them this is; without torchrun, one."""
    rank: int = 0
    number: int = 1

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.number > 1:
            torch.distributed.barrier()

    def agree(self, make: Callable[[], Any]) -> Any:
        """Return in every process what the first one's `make` returns; the others do not call theirs."""
        found = [make() if self.rank == 0 else None]
        if self.number > 1:
            torch.distributed.broadcast_object_list(found)
        return found[0]


ALONE = Processes()


def join_processes() -> Processes:
    """Return the processes that torchrun started, once they have found each other.

    Each takes its device, the GPU of its number if there are any.
    """
    take_device("benchmarking.py")
    processes = Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if processes.number > 1:
        # they wait for the slowest of them, for hours with a large set
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        # else its threads may still run when the interpreter ends, which then aborts
        atexit.register(torch.distributed.destroy_process_group)
    return processes
