"""Which process, Slurm job and node this is, so that others can tell whether it lives; without torch."""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parallel.ranks.variables import number

PR_SET_PDEATHSIG = 1  # of prctl(2)
_LIBC = ctypes.CDLL(None)  # loaded here, because a child must not load it between fork and exec


def identity() -> dict[str, Any]:
    """Which process this is, so that others on its machine can tell whether it lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": start_time(os.getpid())}


def start_time(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def is_gone(who: dict[str, Any]) -> bool:
    """Whether a process is known to be gone: of another machine nothing is known."""
    return who["host"] == socket.gethostname() and start_time(who["pid"]) != who["start"]


def end_with_parent(parent: int | None = None, signal_number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send a signal to this process when its parent dies, also by SIGKILL.

    Args:
        parent: the process id of the parent, if it may be gone already; then this process ends now.
        signal_number: of the signal.
    """
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal_number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def slurm_job(env: Mapping[str, str] = os.environ) -> dict[str, str | int] | None:
    """The Slurm job that this process runs in, and how often it was requeued; None outside of Slurm.

    Raises:
        LaunchError: a variable is garbled.
    """
    if "SLURM_JOB_ID" not in env:
        return None
    restarts = number(env, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in env else 0
    return {"id": str(number(env, "SLURM_JOB_ID")), "restarts": restarts}


def node_name(env: Mapping[str, str] = os.environ) -> str:
    """Slurm's name of this machine, or its host name."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()
