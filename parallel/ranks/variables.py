"""Environment variables of launchers, none of which is trusted; without torch.

Every reader here returns a usable value or raises LaunchError with the variable, its value and the fix.
"""

import re
from collections.abc import Mapping

from parallel.ranks import logs

START = "start ranks with --nproc, torchrun, mpirun or srun"
LARGEST_WORLD = 2**20  # ranks; a larger number is garbled
HOST = re.compile(r"(?=.*[A-Za-z.:])[A-Za-z0-9_.:%-]+")  # a name or an address, IPv6 too; not a bare number
DEVICE = re.compile(r"\d+|(GPU|MIG)-[\w/-]+", re.ASCII)
NO_DEVICES = ("", "-1", "NoDevFiles")  # of CUDA_VISIBLE_DEVICES; the last is Slurm's
ACCELERATORS = ("cpu", "cuda")


class LaunchError(ValueError):
    """The processes of a run cannot find each other; the message names the variable and the fix."""


def number(env: Mapping[str, str], name: str) -> int:
    """A number of at least 0.

    Raises:
        LaunchError: the variable is missing, empty or something else.
    """
    text = env.get(name, "").strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise LaunchError(f"the launcher set no usable {name} (got {env.get(name)!r}); {START}")
    return int(text)


def member(env: Mapping[str, str], rank_name: str, size_name: str) -> tuple[int, int]:
    """A rank and the number of ranks that it is one of.

    Raises:
        LaunchError: a variable is missing or garbled, or the rank lies outside.
    """
    rank, size = number(env, rank_name), number(env, size_name)
    if not 1 <= size <= LARGEST_WORLD:
        raise LaunchError(f"{size_name} ({size}) must lie in 1 to {LARGEST_WORLD}; {START}")
    if rank >= size:
        raise LaunchError(f"{rank_name} ({rank}) must be below {size_name} ({size}); {START}")
    return rank, size


def check_local(size: int, world_size: int, name: str, world_name: str) -> None:
    """Refuse more ranks on this node than there are in the world.

    Raises:
        LaunchError: `size`, which the variable `name` says, exceeds `world_size`.
    """
    if size > world_size:
        raise LaunchError(f"{name} ({size}) must be at most {world_name} ({world_size}); {START}")


def master_port(env: Mapping[str, str]) -> int:
    """MASTER_PORT, where rank 0 listens.

    Raises:
        LaunchError: it is no port. `torchrun --master-port=0` passes 0 on, and ranks would wait for ever.
    """
    port = number(env, "MASTER_PORT")
    if not 1 <= port <= 65535:
        raise LaunchError(
            f"MASTER_PORT is {port}, where nobody can meet; use torchrun --standalone, or name a port"
        )
    return port


def master_address(env: Mapping[str, str]) -> str:
    """MASTER_ADDR, the host of rank 0; whether it resolves is seen when the ranks meet.

    Raises:
        LaunchError: it is missing, or cannot be the name or the address of a host.
    """
    host = env.get("MASTER_ADDR", "")
    if not HOST.fullmatch(host):
        raise LaunchError(f"MASTER_ADDR ({host!r}) must be the name or the address of the host of rank 0")
    return host


def check_pairs(env: Mapping[str, str]) -> None:
    """Refuse half of a launcher's variables, with which every rank would take itself for the only one.

    Raises:
        LaunchError: a rank is given without the number of ranks, or the other way round.
    """
    for pair in (
        ("RANK", "WORLD_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
    ):
        given = [name for name in pair if name in env]
        if len(given) == 1:
            (missing,) = {*pair} - {*given}
            raise LaunchError(
                f"{given[0]} is set ({env[given[0]]!r}) but {missing} is not; {START}, or `unset {given[0]}` "
                "for one process alone"
            )


def check_process(env: Mapping[str, str]) -> None:
    """Check what this process and its libraries read by themselves: threads, devices, log level, accelerator.

    Raises:
        LaunchError: a library would silently ignore the value, or fail with a traceback.
    """
    threads = env.get("OMP_NUM_THREADS", "1")
    if not re.fullmatch(r"\s*0*[1-9][0-9]{0,5}\s*(,\s*0*[1-9][0-9]{0,5}\s*)*", threads):
        raise LaunchError(
            f"OMP_NUM_THREADS ({threads!r}) must be a number of at least 1; set it, or "
            "`unset OMP_NUM_THREADS`"
        )
    devices = env.get("CUDA_VISIBLE_DEVICES", "").strip()
    if devices not in NO_DEVICES and not all(DEVICE.fullmatch(one.strip()) for one in devices.split(",")):
        raise LaunchError(
            f"CUDA_VISIBLE_DEVICES ({devices!r}) must list numbers or UUIDs of GPUs, such as 0,1; "
            "set it, or `unset CUDA_VISIBLE_DEVICES`"
        )
    level = env.get(logs.VARIABLE, "INFO")
    if level.strip().upper() not in logs.LEVELS:
        raise LaunchError(
            f"{logs.VARIABLE} ({level!r}) must be one of {', '.join(logs.LEVELS)}; set it, or "
            f"`unset {logs.VARIABLE}`"
        )
    accelerator = env.get("DS_ACCELERATOR", "cpu")
    if accelerator not in ACCELERATORS:
        raise LaunchError(
            f"DS_ACCELERATOR ({accelerator!r}) must be one of {', '.join(ACCELERATORS)}; set it, or "
            "`unset DS_ACCELERATOR`"
        )


def named_devices(env: Mapping[str, str]) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; empty where it names none, or is not set."""
    devices = env.get("CUDA_VISIBLE_DEVICES", "").strip()
    return [] if devices in NO_DEVICES else devices.split(",")
