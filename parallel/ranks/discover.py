"""Discovers the rank of this process: from torchrun, MPI or Slurm, or as a single process. No torch.

No other module reads rank variables; launchers.py, variables.py and slurm_env.py do it for this one. A
variable that is missing, empty or garbled is one LaunchError, before the ranks meet. The first launcher whose
variables are set wins: torchrun (and DeepSpeed's launcher and --nproc, which set the same names), then MPI
(mpirun may run inside Slurm), then a Slurm step. A world of Slurm's, and that of a process alone, must be
SLURM_NTASKS; not so torchrun's, which has several ranks a task, nor mpirun's, whose daemons are the tasks.
"""

import os
import re
from collections.abc import Mapping, Sequence

from parallel.ranks.identity import slurm_job
from parallel.ranks.launchers import from_mpi, from_slurm, from_torchrun
from parallel.ranks.rank import Launcher, Ranks
from parallel.ranks.slurm_env import check_world
from parallel.ranks.variables import check_pairs, check_process

RANK_NAMES: Mapping[Launcher, Sequence[str]] = {  # of the variables that hold the rank, by launcher
    "torchrun": ("RANK",),
    "mpi": ("PMI_RANK", "OMPI_COMM_WORLD_RANK"),
    "slurm": ("SLURM_PROCID",),
    "single": (),
}
INTERACTIVE_STEP = str(2**32 - 6)  # slurm.h, SLURM_INTERACTIVE_STEP: where salloc puts its shell on a node


def discover(env: Mapping[str, str] = os.environ) -> Ranks:
    """Read the ranks from the environment that the launcher left.

    Raises:
        LaunchError: a launcher's variables are there but incomplete, garbled or contradictory, or a variable
            that this process's libraries read is garbled.
    """
    check_process(env)
    slurm_job(env)
    launcher = launcher_of(env)
    if launcher == "torchrun":
        return from_torchrun(env)
    if launcher == "mpi":
        return from_mpi(env)
    check_pairs(env)
    ranks = from_slurm(env) if launcher == "slurm" else Ranks()
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


def early_rank(env: Mapping[str, str] = os.environ) -> int:
    """The rank, before `discover` has checked the environment; 0 where it cannot be read.

    It decides which process shows what all of them would log alike, and nothing else.
    """
    rank = next((env[name].strip() for name in RANK_NAMES[launcher_of(env)] if name in env), "")
    return int(rank) if rank.isascii() and rank.isdecimal() else 0


def is_shell_of_a_job(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this is no rank but a shell of a Slurm job of several tasks: salloc's, or a batch script."""
    return launcher_of(env) == "single" and env.get("SLURM_NTASKS", "1") != "1"


def is_one_task(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the only task of a Slurm step, such as the shell of `srun --pty`."""
    return launcher_of(env) == "slurm" and env.get("SLURM_NTASKS") == "1"


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """Arguments without `--local_rank=N`, which DeepSpeed's launcher puts first; the environment has it."""
    return [one for one in arguments if not re.fullmatch(r"--local[-_]rank=\d+", one)]


def job_end_s(env: Mapping[str, str] = os.environ) -> float | None:
    """When Slurm will end this job, in seconds since 1970; None if it is not known."""
    text = env.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdecimal() else None
