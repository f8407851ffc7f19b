"""Rank discovery from recorded environments."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from parallel import env
from parallel.env import (
    COLLECTIVE_TIMEOUT,
    LaunchError,
    Ranks,
    discover,
    first_host,
    join,
    leave,
    threads_per_rank,
)
from tests.distributed import run_on_ranks

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
# what a batch script's shell sees before any srun: no step of its own tasks
BATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names that resolve, instead of asking the network."""
    known = {"gpu07"}

    def resolve(host: str, *_: object) -> list[object]:
        if host not in known:
            raise OSError(f"unknown host {host}")
        return []

    monkeypatch.setattr(env.socket, "getaddrinfo", resolve)
    return known


def test_torchrun() -> None:
    assert discover(TORCHRUN) == Ranks(
        rank=5,
        world_size=8,
        local_rank=1,
        local_world_size=4,
        launcher="torchrun",
        init_method="env://",
    )


def test_deepspeeds_launcher_sets_no_local_world_size() -> None:
    assert discover(without(TORCHRUN, "LOCAL_WORLD_SIZE")).local_world_size == 8


def test_torchrun_wins_inside_a_slurm_step() -> None:
    assert discover(SLURM | TORCHRUN).launcher == "torchrun"


def test_a_slurm_step() -> None:
    found = discover(SLURM)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (9, 14, 1, 2)
    assert found.launcher == "slurm"
    assert found.init_method.startswith("tcp://gpu07:")


def test_ports_lie_below_the_ephemeral_ones_and_differ_by_job_and_step() -> None:
    ports = {
        int(
            discover(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).init_method.split(":")[2]
        )
        for job in range(10)
        for step in range(3)
    }
    assert len(ports) == 30
    assert min(ports) >= 20000
    assert max(ports) < 32000


def test_a_node_whose_name_does_not_resolve_is_reached_by_the_launch_address(nodes: set[str]) -> None:
    nodes.clear()
    assert discover(SLURM).init_method.startswith("tcp://10.0.0.7:")
    assert discover(without(SLURM, "SLURM_LAUNCH_NODE_IPADDR")).init_method.startswith("tcp://gpu07:")


def test_an_address_of_the_user_wins_in_a_slurm_step() -> None:
    given = {"MASTER_ADDR": "ib0-gpu07", "MASTER_PORT": "12345"}
    assert discover(SLURM | given).init_method == "tcp://ib0-gpu07:12345"


@pytest.mark.parametrize(
    ("text", "node", "tasks"),
    [("4", 0, 4), ("4(x2)", 1, 4), ("4(x2),2", 2, 2), ("1,3(x3),2", 3, 3), ("1,3(x3),2", 4, 2)],
)
def test_tasks_of_each_node(text: str, node: int, tasks: int) -> None:
    environment = SLURM | {"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}
    assert discover(environment).local_world_size == tasks


def test_an_older_slurm_without_the_steps_own_numbers() -> None:
    environment = without(SLURM, *(n for n in SLURM if n.startswith("SLURM_STEP_") and n != "SLURM_STEP_ID"))
    found = discover(environment | {"SLURM_JOB_NODELIST": "gpu07"})
    assert (found.world_size, found.local_world_size) == (14, 4)
    assert found.init_method.startswith("tcp://gpu07:")


@pytest.mark.parametrize("environment", [{}, BATCH, {"RANK": "0"}, {"WORLD_SIZE": "2"}])
def test_no_launcher_is_one_process(environment: dict[str, str]) -> None:
    assert discover(environment) == Ranks()


@pytest.mark.parametrize(
    ("nodes_of_step", "host"),
    [
        ("gpu[07-09,12]", "gpu07"),
        ("gpu[12,07-09]", "gpu12"),
        ("gpu7", "gpu7"),
        ("a1,b[2-3]", "a1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("rack1-gpu[3]", "rack1-gpu3"),
        ("node-a.cluster", "node-a.cluster"),
    ],
)
def test_the_first_host_of_a_node_list(nodes_of_step: str, host: str) -> None:
    assert first_host(nodes_of_step) == host


def test_no_node_list_at_all() -> None:
    with pytest.raises(LaunchError) as error:
        first_host("")
    assert str(error.value) == "SLURM_STEP_NODELIST ('') is not a list of nodes; set MASTER_ADDR"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            without(TORCHRUN, "MASTER_PORT"),
            "RANK is set but MASTER_PORT is not; start ranks with --nproc or torchrun",
        ),
        (
            without(TORCHRUN, "LOCAL_RANK"),
            "the launcher set no usable LOCAL_RANK (got None); start ranks with --nproc, torchrun, mpirun or "
            "srun",
        ),
        (
            TORCHRUN | {"RANK": "five"},
            "the launcher set no usable RANK (got 'five'); start ranks with --nproc, torchrun, mpirun or "
            "srun",
        ),
        (
            without(SLURM, "SLURM_LOCALID"),
            "the launcher set no usable SLURM_LOCALID (got None); start ranks with --nproc, torchrun, mpirun "
            "or srun",
        ),
    ],
)
def test_incomplete_environments_name_the_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError) as error:
        discover(environment)
    assert str(error.value) == message


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


@pytest.mark.parametrize("mark", [{"OMPI_COMM_WORLD_SIZE": "4"}, {"PMI_SIZE": "4"}])
def test_mpi_even_inside_slurm(monkeypatch: pytest.MonkeyPatch, mark: dict[str, str]) -> None:
    install_mpi(monkeypatch, FakeWorld(3, 4, 1, 2, "tcp://gpu06:4242"))
    assert discover(SLURM | mark) == Ranks(
        rank=3,
        world_size=4,
        local_rank=1,
        local_world_size=2,
        launcher="mpi",
        init_method="tcp://gpu06:4242",
    )


@pytest.mark.parametrize(("local_size", "host"), [(2, "gpu07"), (4, "127.0.0.1")])
def test_rank_0_of_mpi_gives_its_address(monkeypatch: pytest.MonkeyPatch, local_size: int, host: str) -> None:
    install_mpi(monkeypatch, FakeWorld(0, 4, 0, local_size, None))
    address = discover({"OMPI_COMM_WORLD_SIZE": "4"}).init_method
    assert address.rpartition(":")[0] == f"tcp://{host}"
    assert 1024 <= int(address.rpartition(":")[2]) < 65536


def test_mpirun_without_mpi4py_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LaunchError) as error:
        discover({"OMPI_COMM_WORLD_SIZE": "4"})
    assert str(error.value) == "started by mpirun, but mpi4py is missing: pip install 'swin-moe[mpi]'"


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(1, 1, 1), (2, 4, 1), (8, 2, 4), (7, 2, 3), (64, 8, 8)]
)
def test_ranks_times_threads_stay_within_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, threads: int
) -> None:
    monkeypatch.setattr(env.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert threads_per_rank(ranks) == threads


def test_a_process_alone_joins_without_a_port_and_leaves_as_often_as_it_likes() -> None:
    try:
        join(Ranks(), torch.device("cpu"))
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "gloo")
    finally:
        leave()
    assert not dist.is_initialized()
    leave()


PREPARE = """
import os, torch
from parallel.env import Ranks, prepare_process
device = prepare_process(Ranks(rank=3, world_size=4, local_rank=3, local_world_size=1))
print(device, os.environ["LOCAL_RANK"], os.environ["DS_ACCELERATOR"], torch.get_num_threads())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the words are of a machine without a GPU")
@pytest.mark.parametrize(("given", "threads"), [({}, threads_per_rank(1)), ({"OMP_NUM_THREADS": "1"}, 1)])
def test_a_process_without_a_gpu_is_prepared(given: dict[str, str], threads: int) -> None:
    environment = without(dict(os.environ), "OMP_NUM_THREADS", "DS_ACCELERATOR", "LOCAL_RANK") | given
    done = subprocess.run(
        [sys.executable, "-c", PREPARE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["cpu", "3", "cpu", str(threads)]


def timeout_of_a_later_group() -> tuple[float, float]:
    """Seconds of torch's default, as `join` left it, and of a group made without saying one."""
    group = dist.new_group(list(range(dist.get_world_size())))
    options = group._get_backend(torch.device("cpu")).options  # type: ignore[attr-defined]
    return dist.distributed_c10d.default_pg_timeout.total_seconds(), options._timeout.total_seconds()


def test_groups_made_later_have_the_time_out_of_the_first() -> None:
    default_s = COLLECTIVE_TIMEOUT.total_seconds()
    assert run_on_ranks(timeout_of_a_later_group, 2) == [(default_s, default_s)] * 2
