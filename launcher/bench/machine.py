"""The machine that was measured. No torch."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What figures depend on, and whether other programs were running."""

    processor: str
    cores: int  # that this process may use
    load: float  # processes that ran or wanted to, on average over the last minute

    def __str__(self) -> str:
        """For a person."""
        return f"{self.processor}, {self.cores} core{'s' * (self.cores != 1)}, load {self.load:.1f}"


def this_machine(cpuinfo: Path = CPUINFO) -> Machine:
    """The machine of this process, before the work that is measured."""
    cores = len(os.sched_getaffinity(0))
    return Machine(processor=_processor(cpuinfo), cores=cores, load=os.getloadavg()[0])


def _processor(cpuinfo: Path) -> str:
    """Its name, or its architecture where the system has no name for it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()
