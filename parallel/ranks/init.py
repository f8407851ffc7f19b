"""Prepares this process and joins it to the others: device, cores, process group, and leaving it."""

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.ranks import gpu
from parallel.ranks.rank import Ranks
from parallel.ranks.slurm_env import resolves
from parallel.ranks.variables import LaunchError, named_devices

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
RESOLVE_S = 30.0  # for the name of rank 0's host to be known: in a young container it comes late
GPUS = Path("/proc/driver/nvidia/gpus")  # a directory for each GPU of the machine, visible or not


def prepare_process(ranks: Ranks) -> torch.device:
    """Give this process its device and its share of the cores; call it before DeepSpeed is imported.

    Without a GPU, DeepSpeed has to know. Unless OMP_NUM_THREADS says otherwise, ranks x threads =
    cores; where several ranks share the node, each runs on the cores beside its GPU.

    Raises:
        LaunchError: CUDA_VISIBLE_DEVICES names GPUs that are not there.
    """
    check_devices()
    threads = threads_per_rank(ranks.local_world_size)
    if torch.cuda.is_available():
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        gpu.set_variables(os.environ)
        gpu.use(device)
        if ranks.local_world_size > 1:
            gpu.bind_to_cores_of(device)
    else:
        choose_accelerator()
        device = torch.device("cpu")
    _set_local_rank(ranks.local_rank if device.index is None else device.index)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
        if device.type == "cuda":  # for the OpenMP of DeepSpeed's offloaded optimizer, which is loaded later
            os.environ["OMP_NUM_THREADS"] = str(threads)
    return device


def _set_local_rank(index: int) -> None:
    """Set LOCAL_RANK, which DeepSpeed takes for the number of the device; mpirun's must be equal to it.

    It is not always the local rank: a task may see one GPU alone, which is number 0.
    """
    os.environ["LOCAL_RANK"] = str(index)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(index)


def check_devices(env: Mapping[str, str] = os.environ) -> None:
    """Refuse CUDA_VISIBLE_DEVICES that CUDA silently cuts short at a GPU that is not there."""
    named, seen = named_devices(env), torch.cuda.device_count()
    if GPUS.is_dir() and any(GPUS.iterdir()) and seen < len(named):
        raise LaunchError(
            f"CUDA_VISIBLE_DEVICES ({','.join(named)}) names {len(named)} GPUs, of which CUDA finds {seen}; "
            "name those that nvidia-smi -L lists, each once, or `unset CUDA_VISIBLE_DEVICES`"
        )


def choose_accelerator() -> None:
    """Set DS_ACCELERATOR where there is no GPU, before DeepSpeed is imported, which would search and print.

    Raises:
        LaunchError: DS_ACCELERATOR asks for a GPU.
    """
    if torch.cuda.is_available():
        return
    if (accelerator := os.environ.setdefault("DS_ACCELERATOR", "cpu")) != "cpu":
        raise LaunchError(f"DS_ACCELERATOR is {accelerator!r}, but no GPU is visible; `unset DS_ACCELERATOR`")


def threads_per_rank(local_world_size: int) -> int:
    """Threads that keep ranks x threads within the cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)


def join(ranks: Ranks, device: torch.device, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
    """Join the process group: NCCL on GPUs, gloo on the CPU; a single process opens no port.

    Args:
        ranks: this process among the others.
        device: of this process.
        timeout: of each collective, the last resort behind parallel/watchdog/watch.py.

    Raises:
        LaunchError: the host of rank 0 is not known, or its port is taken.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    # groups made later, DeepSpeed's among them, take torch's own default and not that of the first group
    dist.distributed_c10d.default_pg_timeout = timeout
    dist.distributed_c10d.default_pg_nccl_timeout = timeout
    if ranks.launcher == "single":
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    host, port = ranks.meeting_place
    _await_host(host)
    if host and device.type == "cuda":
        gpu.choose_interface(host, os.environ)
    try:
        dist.init_process_group(
            backend,
            init_method=ranks.init_method,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
        )
    except dist.DistNetworkError as error:
        if not any(name in str(error) for name in ("EADDRINUSE", "EACCES")):
            raise
        raise LaunchError(
            f"rank 0 cannot listen on port {port} of {host}: it is taken, or reserved; set "
            "MASTER_PORT to another"
        ) from error


def _await_host(host: str) -> None:
    """Wait until the name of rank 0's host resolves; torch would retry until the time-out of a run."""
    give_up_s = time.monotonic() + RESOLVE_S
    while host and not resolves(host):
        if time.monotonic() >= give_up_s:
            raise LaunchError(
                f"the host of rank 0 ({host}) is not known on {socket.gethostname()}; set MASTER_ADDR to a "
                "name or an address that every node knows"
            )
        time.sleep(1.0)


def leave() -> None:
    """Leave the process group, if this process joined it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def nccl_settings(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables of NCCL and of torch's use of it."""
    names = ("NCCL_", "TORCH_NCCL_", "TORCH_FR_", "CUDA_LAUNCH_BLOCKING")
    return {name: value for name, value in env.items() if name.startswith(names)}
