"""Environments of ranks as each launcher sets them, most of them recorded, and a fake MPI."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "29500",
}
# srun --nodes=4 --ntasks=14 of a job on five nodes; this is the third node's second task
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "14",
    "SLURM_STEP_NUM_TASKS": "14",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_JOB_NODELIST": "gpu[06-09,12]",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_TASKS_PER_NODE": "4(x5)",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2,4",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}
# Recorded (SLURM_* of many left out where nothing reads them):
# the second of two ranks of `deepspeed --num_gpus 2` 0.19.8, and what its script is given
DEEPSPEED = {
    "CROSS_RANK": "0",
    "CROSS_SIZE": "1",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "RANK": "1",
    "WORLD_SIZE": "2",
}
DEEPSPEED_ARGUMENTS = ["--local_rank=1", "train", "CONFIG"]
# Slurm 22.05.8: `sbatch --nodes=4 --ntasks=8`, the batch script's own shell
BATCH = {
    "SLURM_JOB_ID": "1567300",
    "SLURM_JOB_NODELIST": "n[1-4]",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x4)",
}
# srun --nodes=2 --ntasks=3 in it: SLURM_NTASKS is the step's
STEP = BATCH | {
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_TASKS_PER_NODE": "2,1",
}
# a task of `sbatch --array=0-1 --nodes=2 --ntasks=2`: its second rank
ARRAY = {
    "SLURM_ARRAY_JOB_ID": "1567301",
    "SLURM_ARRAY_TASK_COUNT": "2",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_JOB_ID": "1567301",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_TASKS_PER_NODE": "1(x2)",
}
# salloc --nodes=2 --ntasks=4: the shell, on the machine that it was typed on
SALLOC = {
    "SLURM_JOB_ID": "1567303",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
# the same where LaunchParameters=use_interactive_step: the shell is a step on the first node
INTERACTIVE = SALLOC | {
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
# srun --ntasks=1 --pty in a job of four tasks
PTY = INTERACTIVE | {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_TASKS_PER_NODE": "1"}


# srun --mpi=pmi2 --nodes=2 --ntasks=2: the second rank
PMI2 = ARRAY | {"PMI_JOBID": "1567308.0", "PMI_RANK": "1", "PMI_SIZE": "2"}
# salloc --nodes=1 --ntasks=2 mpirun -n 2 (Open MPI 5.0.11): the one task of Slurm's step is mpirun's daemon
MPIRUN_IN_SALLOC = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMIX_RANK": "1",
    "SLURM_JOB_ID": "1567306",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n3",
    "SLURM_STEP_NUM_TASKS": "1",
}


class FakeWorld:
    """COMM_WORLD of rank 3 of 4, the second of its node's two; rank 0 said `said`."""

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int, said: str | None) -> None:
        self.rank, self.size, self.said = rank, size, said
        self.node = SimpleNamespace(rank=local_rank, size=local_size)

    def Split_type(self, kind: str) -> SimpleNamespace:  # noqa: N802
        assert kind == "shared"
        return self.node

    def bcast(self, value: str | None, root: int) -> str | None:
        assert root == 0
        assert (value is None) == (self.rank != 0)
        return value if self.rank == 0 else self.said


def install_mpi(monkeypatch: pytest.MonkeyPatch, world: FakeWorld) -> None:
    module = ModuleType("mpi4py")
    module.MPI = SimpleNamespace(  # type: ignore[attr-defined]
        COMM_WORLD=world, COMM_TYPE_SHARED="shared", Get_processor_name=lambda: "gpu07"
    )
    monkeypatch.setitem(sys.modules, "mpi4py", module)
