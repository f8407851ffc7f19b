"""Who am I among the processes of this run: torchrun, MPI, Slurm, or alone.

The only reader of rank variables in the project. The first launcher that left its mark wins: torchrun (and
DeepSpeed's launcher, which sets the same names), then MPI (mpirun may run inside Slurm), then a Slurm step.
"""

import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


class LaunchError(ValueError):
    """The processes of a run cannot find each other; the message names the variable and the fix."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the others, and where rank 0 listens (`init_method`, unused when alone)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: Literal["torchrun", "mpi", "slurm", "single"] = "single"
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


def discover(env: Mapping[str, str] = os.environ) -> Ranks:
    """Read the ranks from the environment that the launcher left.

    Raises:
        LaunchError: a launcher's variables are there but incomplete or contradictory.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        return _from_torchrun(env)
    if "OMPI_COMM_WORLD_SIZE" in env or "PMI_SIZE" in env:
        return _from_mpi()
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        return _from_slurm(env)
    return Ranks()


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise LaunchError(
            f"the launcher set no usable {name} (got {env.get(name)!r}); start ranks with --nproc, torchrun, "
            "mpirun or srun"
        ) from error


def _from_torchrun(env: Mapping[str, str]) -> Ranks:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in env:
            raise LaunchError(f"RANK is set but {name} is not; start ranks with --nproc or torchrun")
    return Ranks(
        rank=_number(env, "RANK"),
        world_size=_number(env, "WORLD_SIZE"),
        local_rank=_number(env, "LOCAL_RANK"),
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
        launcher="torchrun",
        init_method="env://",
    )


def _from_mpi() -> Ranks:
    """mpi4py knows the ranks, and carries the address of rank 0 to the others."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise LaunchError("started by mpirun, but mpi4py is missing: pip install 'swin-moe[mpi]'") from error
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    host = "127.0.0.1" if node.size == world.size else MPI.Get_processor_name()
    address = world.bcast(f"tcp://{host}:{_free_port()}" if world.rank == 0 else None, root=0)
    return Ranks(
        rank=world.rank,
        world_size=world.size,
        local_rank=node.rank,
        local_world_size=node.size,
        launcher="mpi",
        init_method=address,
    )


def _free_port() -> int:
    """A port that the system just said is free."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _from_slurm(env: Mapping[str, str]) -> Ranks:
    """One srun task a rank; the port is a function of job and step, so two jobs on one node differ."""
    job_step = f"{env.get('SLURM_JOB_ID', '0')}.{env['SLURM_STEP_ID']}"
    port = 20000 + zlib.crc32(job_step.encode()) % 12000  # below the kernel's ephemeral ports
    host = env.get("MASTER_ADDR") or _slurm_host(env)
    return Ranks(
        rank=_number(env, "SLURM_PROCID"),
        world_size=_number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"),
        local_rank=_number(env, "SLURM_LOCALID"),
        local_world_size=_tasks_on_node(env),
        launcher="slurm",
        init_method=f"tcp://{host}:{env.get('MASTER_PORT', port)}",
    )


def _slurm_host(env: Mapping[str, str]) -> str:
    """The step's first node; where its name does not resolve, the node that srun ran on."""
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", "localhost"))
    host = first_host(nodes)
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return env.get("SLURM_LAUNCH_NODE_IPADDR", host)
    return host


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `gpu[07-09,12],cpu1` -> `gpu07`."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if match is None:
        raise LaunchError(f"SLURM_STEP_NODELIST ({nodes!r}) is not a list of nodes; set MASTER_ADDR")
    return match[1] + (match[2] or "")


def _tasks_on_node(env: Mapping[str, str]) -> int:
    """Tasks on this node, from a list such as `4(x2),2`: two nodes of four tasks, then one of two."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1"))
    counts: list[int] = []
    for item in text.split(","):
        number, _, repeat = item.partition("(x")
        counts += [int(number)] * int(repeat.rstrip(")") or 1)
    return counts[int(env.get("SLURM_NODEID", "0"))]


def slurm_job(env: Mapping[str, str] = os.environ) -> dict[str, str | int] | None:
    """The Slurm job that this process runs in, and how often it was requeued; None outside of Slurm."""
    if "SLURM_JOB_ID" not in env:
        return None
    return {"id": env["SLURM_JOB_ID"], "restarts": int(env.get("SLURM_RESTART_COUNT", "0"))}


def prepare_process(ranks: Ranks) -> torch.device:
    """Give this process its device and its share of the cores; call it before DeepSpeed is imported.

    DeepSpeed insists on LOCAL_RANK and, without a GPU, on being told so. Unless OMP_NUM_THREADS says
    otherwise, ranks x threads = cores.
    """
    os.environ["LOCAL_RANK"] = str(ranks.local_rank)
    if torch.cuda.is_available():
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    choose_accelerator()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_per_rank(ranks.local_world_size))
    return torch.device("cpu")


def choose_accelerator() -> None:
    """Tell DeepSpeed, before it is imported, where there is no GPU; it would look by itself, and say so."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def threads_per_rank(local_world_size: int) -> int:
    """Threads that keep ranks x threads within the cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)


def join(ranks: Ranks, device: torch.device, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
    """Meet the other ranks: NCCL on GPUs, gloo on the CPU; a process alone opens no port at all.

    Args:
        ranks: this process among the others.
        device: of this process.
        timeout: of each collective, the last resort behind parallel/watch.py.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    # groups made later, DeepSpeed's among them, take torch's own default and not that of the first group
    dist.distributed_c10d.default_pg_timeout = timeout
    dist.distributed_c10d.default_pg_nccl_timeout = timeout
    if ranks.launcher == "single":
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    dist.init_process_group(
        backend,
        init_method=ranks.init_method,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )


def leave() -> None:
    """Say good-bye to the other ranks, if they were ever met."""
    if dist.is_initialized():
        dist.destroy_process_group()
