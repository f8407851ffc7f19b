"""The nodes and tasks of a step, from Slurm's variables, for discover.py; recorded on Slurm 22.05."""

import re
import shutil
import socket
import subprocess
from collections.abc import Mapping

from parallel.ranks.node_list import SCONTROL_S, hosts
from parallel.ranks.variables import HOST, LaunchError, number

NODES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")  # the first that is set
TASKS = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")


def check_world(world_size: int, env: Mapping[str, str]) -> None:
    """Refuse a world that is not the job's tasks, such as rank 0 of 1 in a batch script without srun.

    srun sets SLURM_NTASKS to the tasks of its own step, so a step smaller than its job passes. The shell of
    `salloc` and of a batch script has the job's; that of an interactive step too, and one task.

    Raises:
        LaunchError: SLURM_NTASKS is there and another number.
    """
    tasks = number(env, "SLURM_NTASKS") if "SLURM_NTASKS" in env else world_size
    if tasks != world_size:
        raise LaunchError(
            f"SLURM_NTASKS is {tasks}, but this process is one of {world_size}: start the ranks with srun; "
            "or --nproc N for N ranks on this node; or `unset SLURM_NTASKS` if a run of "
            f"{world_size} is meant"
        )


def first_node(env: Mapping[str, str]) -> str:
    """An address of the step's first node, where rank 0 listens: the first of these that resolves.

    Its name, its NodeAddr in Slurm's own configuration, and the node that srun ran on.

    Raises:
        LaunchError: no variable holds a list of nodes.
    """
    variable = next((name for name in NODES if name in env), NODES[0])
    name = hosts(env.get(variable, ""), variable)[0]
    if resolves(name):
        return name
    if (address := node_address(name)) and resolves(address):
        return address
    launched_from = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
    return launched_from if HOST.fullmatch(launched_from) else name


def node_address(name: str) -> str | None:
    """NodeAddr of a node, as `scontrol show node` says it; None where it does not."""
    if (scontrol := shutil.which("scontrol")) is None:
        return None
    command = [scontrol, "show", "node", "--oneliner", name]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=SCONTROL_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bNodeAddr=(\S+)", output)
    return match[1] if match else None


def resolves(host: str) -> bool:
    """Whether the network knows a host by this name or address."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True


def tasks_on_node(env: Mapping[str, str]) -> int:
    """Tasks on this node, from a list such as `4(x2),2`: two nodes of four tasks, then one of two.

    Raises:
        LaunchError: a variable is missing or garbled, or the list ends before this node.
    """
    variable = next((name for name in TASKS if name in env), TASKS[0])
    text, node = env.get(variable, ""), number(env, "SLURM_NODEID")
    left = node
    for item in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]{0,6})(?:\(x([1-9][0-9]{0,6})\))?", item.strip(), re.ASCII)
        if match is None:
            raise LaunchError(
                f"{variable} ({text!r}) must list the tasks of each node, such as 4(x2),2; start ranks with "
                "srun"
            )
        if left < (nodes := int(match[2] or 1)):
            return int(match[1])
        left -= nodes
    raise LaunchError(
        f"SLURM_NODEID ({node}) is beyond the nodes of {variable} ({text}); start ranks with srun"
    )
