"""What is the same for every job of a site: $SWIN_MOE_SITE, or ~/.config/swin-moe/site.yaml.

The command line wins over the file, the file over the defaults. No `from __future__ import annotations` here:
pydantic resolves the types when it validates.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.config.load import load_section
from launcher.config.time_limits import memory, time_limit

LATEST_SIGNAL_S = 65535  # sbatch(1), --signal
DEFAULT = Path(".config", "swin-moe", "site.yaml")  # of the home directory


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """The image in which every rank runs; the run directory is mounted in any case."""

    runtime: Literal["pyxis", "apptainer"]
    image: str | None = None  # a file, or what the runtime can pull; `--container` of the command line wins
    mounts: tuple[str, ...] = ()  # /path, or /here:/there


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """The root of the file; what is None is left to Slurm."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | int | None = None  # minutes, 2:00:00, 3-12:00:00, UNLIMITED; kept as [D-]HH:MM:SS
    constraint: str | None = None  # features of the nodes
    gpus_per_node: int = 0
    cpus_per_rank: int | None = None
    mem: str | int | None = None  # a node, such as 200G; 0 is all of it
    gpu_directive: Literal["gpus-per-node", "gres"] = "gpus-per-node"  # how this Slurm wants GPUs asked for
    modules: tuple[str, ...] = ()  # `module load` of each
    setup: str = ""  # lines of shell, run on the first node before the ranks start
    environment: dict[str, str] = field(default_factory=dict)  # of every rank; lies in a file of mode 0600
    python: str | None = None  # on the nodes; None is the one that submits, or a container's python3
    container: ContainerConfig | None = None
    signal_s: int = 120  # before the time limit, so that the run can save
    requeue_limit: int = 50  # the run goes back into the queue by itself so often
    sbatch: tuple[str, ...] = ()  # further directives, such as --exclusive

    @property
    def interpreter(self) -> str:
        """What runs the ranks."""
        return self.python or ("python3" if self.container else sys.executable)

    def __post_init__(self) -> None:
        if self.time is not None:
            object.__setattr__(self, "time", time_limit(self.time))
        if self.mem is not None:
            object.__setattr__(self, "mem", memory(self.mem))
        if self.signal_s > LATEST_SIGNAL_S:
            raise ValueError(f"signal_s ({self.signal_s}) must be at most {LATEST_SIGNAL_S}, as in sbatch")
        for name, lowest in {"gpus_per_node": 0, "signal_s": 30, "requeue_limit": 0}.items():
            if (value := getattr(self, name)) < lowest:
                raise ValueError(f"{name} ({value}) must be at least {lowest}")
        if self.cpus_per_rank is not None and self.cpus_per_rank < 1:
            raise ValueError(f"cpus_per_rank ({self.cpus_per_rank}) must be at least 1")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment: {name!r} cannot be the name of a variable")
        for directive in self.sbatch:
            if not directive.startswith("--"):
                raise ValueError(f"sbatch: {directive!r} must be a long option, such as --exclusive")


def load_site(environment: Mapping[str, str] = os.environ) -> SiteConfig:
    """Read the file of this site; without one, the defaults.

    Raises:
        ConfigError: with everything that is wrong in it, or $SWIN_MOE_SITE names no file.
    """
    if named := environment.get("SWIN_MOE_SITE"):
        return load_section(SiteConfig, named)
    path = Path.home() / DEFAULT
    return load_section(SiteConfig, path) if path.is_file() else SiteConfig()
