"""What Slurm's variables say of a step's nodes and tasks, for parallel/env.py; recorded on Slurm 22.05."""

import re
import shutil
import socket
import subprocess
from collections.abc import Mapping

SCONTROL_S = 10.0


class LaunchError(ValueError):
    """The processes of a run cannot find each other; the message names the variable and the fix."""


def check_world(world_size: int, env: Mapping[str, str]) -> None:
    """Refuse a world that is not the job's tasks, such as rank 0 of 1 in a batch script without srun.

    srun sets SLURM_NTASKS to the tasks of its own step, so a step smaller than its job passes. The shell of
    `salloc` and of a batch script has the job's; that of an interactive step too, and one task.

    Raises:
        LaunchError: SLURM_NTASKS is there and another number.
    """
    tasks = env.get("SLURM_NTASKS", str(world_size))
    if tasks != str(world_size):
        raise LaunchError(
            f"SLURM_NTASKS is {tasks}, but this process is one of {world_size}: start the ranks with srun; "
            "or --nproc N for N ranks on this node; or `unset SLURM_NTASKS` if a run of "
            f"{world_size} is meant"
        )


def first_node(env: Mapping[str, str]) -> str:
    """An address of the step's first node, where rank 0 listens: the first of these that resolves.

    Its name, its NodeAddr in Slurm's own configuration, and the node that srun ran on.
    """
    name = first_host(env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", "localhost")))
    if _resolves(name):
        return name
    if (address := node_address(name)) and _resolves(address):
        return address
    return env.get("SLURM_LAUNCH_NODE_IPADDR", name)


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `gpu[07-09,12],cpu1` -> `gpu07`."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if match is None:
        raise LaunchError(f"SLURM_STEP_NODELIST ({nodes!r}) is not a list of nodes; set MASTER_ADDR")
    return match[1] + (match[2] or "")


def node_address(name: str) -> str | None:
    """NodeAddr of a node, as `scontrol show node` says it; None where it does not."""
    if (scontrol := shutil.which("scontrol")) is None:
        return None
    command = [scontrol, "show", "node", "--oneliner", name]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bNodeAddr=(\S+)", said)
    return found[1] if found else None


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def tasks_on_node(env: Mapping[str, str]) -> int:
    """Tasks on this node, from a list such as `4(x2),2`: two nodes of four tasks, then one of two."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1"))
    counts: list[int] = []
    for item in text.split(","):
        number, _, repeat = item.partition("(x")
        counts += [int(number)] * int(repeat.rstrip(")") or 1)
    return counts[int(env.get("SLURM_NODEID", "0"))]
