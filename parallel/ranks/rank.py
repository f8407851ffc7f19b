"""One process among the others of a run; without torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Launcher = Literal["torchrun", "mpi", "slurm", "single"]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the others, and where rank 0 listens (`init_method`, unused when alone)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: Launcher = "single"
    init_method: str = ""

    @staticmethod
    def that_meet_at(file: Path, rank: int, world_size: int) -> "Ranks":
        """One of the ranks that a test or benchmark started on this machine, and which need no port."""
        return Ranks(
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            local_world_size=world_size,
            launcher="torchrun",
            init_method=f"file://{file}",
        )

    @property
    def meeting_place(self) -> tuple[str, str]:
        """Host and port of rank 0; both empty where the ranks meet at a file, or there is one alone."""
        if self.init_method == "env://":
            return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        host, _, port = self.init_method.removeprefix("tcp://").rpartition(":")
        return (host, port) if self.init_method.startswith("tcp://") else ("", "")
