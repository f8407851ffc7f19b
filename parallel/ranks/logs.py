"""Logging of all packages: one handler to stderr, with the rank in front where several ranks run.

    downloading Fashion-MNIST ...            on one rank, and in a process that is no rank
    [rank 1] step-00000040 is damaged ...    on several ranks, each line

Modules log with `logging.getLogger(__name__)`. `SWIN_MOE_LOG_LEVEL` sets the level: DEBUG, INFO (the
default), WARNING, ERROR or CRITICAL. Not logged are the answer of a command, which goes to stdout; the
progress and the evaluations of a run, which rank 0 shows for all ranks (launcher/metrics/log.py); and the one
line `NAME: MESSAGE` of an error that ends a process, which scripts read (launcher/slurm/epilogue.py). No
torch.
"""

import logging
import os
import sys
from typing import TextIO

VARIABLE = "SWIN_MOE_LOG_LEVEL"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
PACKAGES = ("launcher", "swin_moe", "data_shards", "parallel")
ONCE = {"once": True}  # `extra` of a record that all ranks log alike, and rank 0 shows


class RankFormatter(logging.Formatter):
    """Puts the rank in front of every line of a record, if there are several ranks."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__("%(message)s")
        self.prefix = f"[rank {rank}] " if world_size > 1 else ""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return "\n".join(f"{self.prefix}{line}" for line in super().format(record).splitlines())


class OnceFilter(logging.Filter):
    """Drops a record that is to be shown once in a run (`extra=ONCE`) on all ranks but rank 0."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this rank shows a record."""
        return self.rank == 0 or not getattr(record, "once", False)


class StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the time, which tests and notebooks replace."""

    @property
    def stream(self) -> TextIO:
        """The standard error of this process."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Ignored: `logging.StreamHandler` sets it when it is made."""


def set_up_logging(rank: int = 0, world_size: int = 1) -> None:
    """Let the loggers of all packages write to stderr; a later call replaces an earlier one.

    The level is that of SWIN_MOE_LOG_LEVEL, which variables.py checks, or INFO.

    Args:
        rank: of this process.
        world_size: ranks.
    """
    named = os.environ.get(VARIABLE, "INFO").strip().upper()
    level: int = getattr(logging, named if named in LEVELS else "INFO")
    handler = StderrHandler()
    handler.addFilter(OnceFilter(rank))
    handler.setFormatter(RankFormatter(rank, world_size))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.propagate = False
        if logger.level != level:  # setting one clears what every logger of the process has cached
            logger.setLevel(level)
