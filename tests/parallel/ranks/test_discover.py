"""Rank discovery from recorded environments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel.ranks import init, slurm_env
from parallel.ranks.discover import discover, is_one_task, is_shell_of_a_job, launcher_of, without_local_rank
from parallel.ranks.init import COLLECTIVE_TIMEOUT, join, leave, threads_per_rank
from parallel.ranks.rank import Ranks
from parallel.ranks.variables import LaunchError
from tests.distributed import run_on_ranks
from tests.messages import assert_names
from tests.parallel.ranks.environments import (
    ARRAY,
    BATCH,
    DEEPSPEED,
    DEEPSPEED_ARGUMENTS,
    INTERACTIVE,
    MPIRUN_IN_SALLOC,
    PMI2,
    PTY,
    SALLOC,
    SLURM,
    STEP,
    TORCHRUN,
    FakeWorld,
    install_mpi,
)

PTY |= {"SLURM_STEP_NODELIST": "n1"}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names that resolve, instead of asking the network."""
    known = {"gpu07", "10.0.0.1"}

    def resolve(host: str, *_: object) -> list[object]:
        if host not in known:
            raise OSError(f"unknown host {host}")
        return []

    monkeypatch.setattr(slurm_env.socket, "getaddrinfo", resolve)
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


def test_deepspeeds_launcher() -> None:
    found = discover(DEEPSPEED)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (1, 2, 1, 2)
    assert without_local_rank(DEEPSPEED_ARGUMENTS) == ["train", "CONFIG"]
    assert without_local_rank(["--local-rank=0", "a.local_rank=0"]) == ["a.local_rank=0"]


def test_ranks_of_two_nodes_by_deepspeeds_launcher() -> None:
    found = discover(DEEPSPEED | {"RANK": "3", "WORLD_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2"})
    assert (found.world_size, found.local_world_size) == (4, 2)


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


def test_recorded_steps() -> None:
    found = discover(STEP)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (2, 3, 0, 1)
    found = discover(ARRAY)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (1, 2, 0, 1)


def install_scontrol(monkeypatch: pytest.MonkeyPatch, directory: Path, said: str) -> None:
    """A scontrol that knows one node."""
    program = directory / "scontrol"
    program.write_text(f'#!/bin/sh\n[ "$*" = "show node --oneliner gpu07" ] || exit 1\necho "{said}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


SAID = "NodeName=gpu07 Arch=x86_64 Gres=(null) NodeAddr={} NodeHostName=gpu07 Port=6818 Version=22.05.8"


@pytest.mark.parametrize(
    ("resolving", "address", "launched_from", "host"),
    [
        ({"gpu07", "10.0.0.1"}, "10.0.0.1", True, "gpu07"),
        ({"10.0.0.1"}, "10.0.0.1", True, "10.0.0.1"),
        (set(), "gpu07", True, "10.0.0.7"),  # NodeAddr is the name where slurm.conf gives none
        (set(), None, True, "10.0.0.7"),
        (set(), None, False, "gpu07"),
    ],
)
def test_where_rank_0_of_a_step_listens(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    nodes: set[str],
    resolving: set[str],
    address: str | None,
    launched_from: bool,
    host: str,
) -> None:
    nodes.clear()
    nodes |= resolving
    monkeypatch.setenv("PATH", "")
    if address:
        install_scontrol(monkeypatch, tmp_path, SAID.format(address))
    given = SLURM if launched_from else without(SLURM, "SLURM_LAUNCH_NODE_IPADDR")
    assert discover(given).init_method.startswith(f"tcp://{host}:")


def test_a_scontrol_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: set[str]) -> None:
    install_scontrol(monkeypatch, tmp_path, SAID.format("10.0.0.1"))
    assert slurm_env.node_address("gpu07") == "10.0.0.1"
    assert slurm_env.node_address("gpu08") is None


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


@pytest.mark.parametrize(
    "environment", [{}, {"MASTER_ADDR": "gpu07"}, {"LOCAL_RANK": "2"}, BATCH | {"SLURM_NTASKS": "1"}]
)
def test_no_launcher_is_one_process(environment: dict[str, str]) -> None:
    assert discover(environment) == Ranks()


@pytest.mark.parametrize(
    ("environment", "tasks", "world_size"),
    [(BATCH, 8, 1), (SALLOC, 4, 1), (INTERACTIVE, 4, 1), (ARRAY | {"SLURM_NTASKS": "4"}, 4, 2)],
)
def test_a_world_that_is_not_the_jobs_tasks_is_refused(
    environment: dict[str, str], tasks: int, world_size: int
) -> None:
    with pytest.raises(LaunchError) as error:
        discover(environment)
    message = str(error.value)
    assert_names(message, f"SLURM_NTASKS is {tasks}", f"{world_size}", "srun", "--nproc")


def test_who_may_start_ranks_in_a_job() -> None:
    assert all(map(is_shell_of_a_job, (BATCH, SALLOC, INTERACTIVE)))
    assert not any(map(is_shell_of_a_job, ({}, STEP, PTY, TORCHRUN, MPIRUN_IN_SALLOC, BATCH | TORCHRUN)))
    assert [is_one_task(env) for env in (PTY, STEP, SALLOC)] == [True, False, False]
    assert launcher_of(INTERACTIVE) == "single"
    assert discover(PTY).world_size == 1


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        (without(TORCHRUN, "MASTER_PORT"), ("RANK is set", "MASTER_PORT is not", "--nproc")),
        (TORCHRUN | {"MASTER_PORT": "0"}, ("MASTER_PORT is 0", "torchrun --standalone")),
        (without(TORCHRUN, "LOCAL_RANK"), (" LOCAL_RANK (got None)", "--nproc")),
        (TORCHRUN | {"RANK": "five"}, (" RANK (got 'five')", "--nproc")),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), (" LOCAL_WORLD_SIZE (got None)", "--nproc")),
        (without(SLURM, "SLURM_LOCALID"), (" SLURM_LOCALID (got None)", "--nproc")),
    ],
)
def test_incomplete_environments_name_the_variable(
    environment: dict[str, str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(LaunchError) as error:
        discover(environment)
    assert_names(str(error.value), *parts)


@pytest.mark.parametrize("environment", [PMI2, MPIRUN_IN_SALLOC])
def test_recorded_mpi(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """mpirun's daemons are the tasks of its step, so SLURM_NTASKS says nothing there."""
    install_mpi(monkeypatch, FakeWorld(1, 2, 1, 2, "tcp://n3:4242"))
    found = discover(environment)
    assert (found.launcher, found.rank, found.world_size) == ("mpi", 1, 2)


@pytest.mark.parametrize(
    ("environment", "name"), [(PMI2, "PMI_SIZE"), (MPIRUN_IN_SALLOC, "OMPI_COMM_WORLD_SIZE")]
)
def test_an_mpi_that_sees_another_world(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    """As recorded: under srun --mpi=pmi2 the wheel's Open MPI is rank 0 of 1, twice."""
    install_mpi(monkeypatch, FakeWorld(0, 1, 0, 1, None))
    with pytest.raises(LaunchError, match=f"^{name} is 2, but MPI sees 1: .*srun --mpi=none$"):
        discover(environment)


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
    assert_names(str(error.value), "mpi4py", "pip install 'swin-moe[mpi]'")


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(1, 1, 1), (2, 4, 1), (8, 2, 4), (7, 2, 3), (64, 8, 8)]
)
def test_ranks_times_threads_stay_within_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, threads: int
) -> None:
    monkeypatch.setattr(init.os, "sched_getaffinity", lambda _: set(range(cores)))
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
from parallel.ranks.init import prepare_process
from parallel.ranks.rank import Ranks
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
