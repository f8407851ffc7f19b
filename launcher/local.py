"""N ranks on this machine, started by torch's elastic agent; the ranks run the very same command."""

import ctypes
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from parallel.env import LaunchError, discover, threads_per_rank

AGENT = "SWIN_MOE_AGENT"  # set for the ranks that the agent started


def run_local(nproc: int, arguments: list[str]) -> int:
    """Run `python -m launcher ARGUMENTS` as `nproc` ranks; returns the exit status of the first that failed.

    The agent meets its ranks at a port that the system picks, so two runs on one machine do not collide.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks say what failed
    os.environ |= _rank_environment(nproc)
    with TemporaryDirectory(prefix="swin-moe-") as logs:  # of the agent, which leaves one behind by itself
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.2,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        return _status_of(lambda: elastic_launch(config, sys.executable)("-u", "-m", "launcher", *arguments))


def _status_of(launch: Callable[[], Any]) -> int:
    """Start the ranks, wait for them and return the exit status that they leave."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch()
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    except SignalException as stop:  # the agent has stopped its ranks
        return 128 + stop.sigval
    return 0


def is_parent(nproc: int | None) -> bool:
    """Whether this process is to start ranks, rather than to be one.

    Raises:
        LaunchError: ranks are asked for where another launcher has started them already.
    """
    if AGENT in os.environ or nproc is None or nproc == 1:
        return False
    launcher = discover().launcher
    if launcher != "single":
        raise LaunchError(f"--nproc starts ranks by itself; leave it out under {launcher}")
    return True


def _rank_environment(nproc: int) -> dict[str, str]:
    """Ranks x threads within the cores, and allocations that do not go back to the system after each step."""
    defaults = {
        "OMP_NUM_THREADS": str(threads_per_rank(nproc)),
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31),
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | {AGENT: str(os.getpid())}


def die_with_agent() -> None:
    """In a rank: end when the agent does, even by SIGKILL, so that no rank is left behind."""
    agent = os.environ.get(AGENT)
    if agent is None:
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(agent):
        os.kill(os.getpid(), signal.SIGKILL)
