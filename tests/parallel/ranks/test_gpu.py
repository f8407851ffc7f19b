"""A process on a GPU, prepared without one: its device, LOCAL_RANK, variables, cores and network."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parallel.ranks import gpu, init
from parallel.ranks.init import prepare_process
from parallel.ranks.rank import Ranks

PROPERTIES = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
VARIABLES = ("LOCAL_RANK", "OMP_NUM_THREADS", "OMPI_COMM_WORLD_LOCAL_RANK", *gpu.DEFAULTS, *gpu.ALLOCATOR)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine of 8 cores with `visible` GPUs beside the cores 4 to 7; what was done to this process."""
    made = SimpleNamespace(visible=8, devices=[], threads=[], bound=[])
    place = tmp_path / "0000:1b:00.0"
    place.mkdir()
    (place / "local_cpulist").write_text("4-7\n")
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is as before at the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: made.visible)
    monkeypatch.setattr(torch.cuda, "set_device", made.devices.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: PROPERTIES)
    monkeypatch.setattr(torch, "set_num_threads", made.threads.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: made.bound.append(cores))
    monkeypatch.setattr(gpu.cores_beside, "__defaults__", (tmp_path,))
    monkeypatch.setattr(gpu.bind_to_cores_of, "__defaults__", (tmp_path,))
    monkeypatch.setattr(init, "GPUS", tmp_path / "none")
    return made


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was set of torch's backends, which stay as they are."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: found.update(cudnn=on))
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul := SimpleNamespace())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found["matmul"] = matmul
    return found


@pytest.mark.parametrize(("visible", "index"), [(1, 0), (2, 1), (4, 3), (8, 3)])
def test_deepspeed_takes_the_device_of_the_rank(machine: SimpleNamespace, visible: int, index: int) -> None:
    """With one visible GPU a task, rank 3 of a node has device 0; DeepSpeed calls set_device(LOCAL_RANK)."""
    machine.visible = visible
    os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = "3"
    device = prepare_process(Ranks(rank=3, world_size=4, local_rank=3, local_world_size=4))
    assert device == torch.device("cuda", index)
    assert machine.devices == [device]
    assert os.environ["LOCAL_RANK"] == os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == str(index)


def test_a_process_on_a_gpu_has_its_settings(machine: SimpleNamespace, backends: dict[str, Any]) -> None:
    prepare_process(Ranks(rank=1, world_size=4, local_rank=1, local_world_size=4))
    assert backends["cudnn"] is False
    assert backends["matmul"].allow_bf16_reduced_precision_reduction is False
    assert torch.backends.cudnn.allow_tf32 is False
    assert machine.threads == [2]
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert machine.bound == [{4, 5, 6, 7}]
    for name in gpu.ALLOCATOR:
        assert os.environ[name] == "expandable_segments:True"


def test_the_users_variables_stay(machine: SimpleNamespace) -> None:
    given = {"OMP_NUM_THREADS": "5", "TORCH_FR_BUFFER_SIZE": "1", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    os.environ.update(given)
    prepare_process(Ranks(local_world_size=4))
    assert {name: os.environ[name] for name in given} == given
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    assert machine.threads == []


@pytest.mark.parametrize("local_world_size", [1, 4])
def test_a_rank_that_is_alone_or_bound_keeps_its_cores(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, local_world_size: int
) -> None:
    if local_world_size > 1:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4})
    prepare_process(Ranks(local_world_size=local_world_size))
    assert machine.bound == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("5", {5}),
        ("0-1,4-5,7", {0, 1, 4, 5, 7}),
        ("\n", set()),
        ("all", set()),
        ("1-", set()),
    ],
)
def test_lists_of_cores(text: str, found: set[int]) -> None:
    assert gpu.cores(text) == found


def test_a_system_that_does_not_say_which_cores(machine: SimpleNamespace, tmp_path: Path) -> None:
    assert gpu.cores_beside(torch.device("cuda", 0), tmp_path / "nowhere") == set()


def test_the_last_collectives_are_written_into_the_run_directory() -> None:
    variables: dict[str, str] = {}
    gpu.dump_collectives_to("runs/x", variables)
    assert variables == {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{Path.cwd()}/runs/x/nccl_trace_rank_"}
    for name in gpu.DUMP_FILE:
        given = {name: "/tmp/trace"}
        gpu.dump_collectives_to("runs/x", given)
        assert given == {name: "/tmp/trace"}


def test_the_interface_to_a_host() -> None:
    loopback = gpu.interface_to("127.0.0.1")
    assert loopback in [name for _, name in socket.if_nameindex()]
    assert loopback is not None
    assert loopback.startswith("lo")
    assert gpu.interface_to("no-such-host.invalid") is None
    variables = {"GLOO_SOCKET_IFNAME": "ib0"}
    gpu.choose_interface("127.0.0.1", variables)
    assert variables == {"GLOO_SOCKET_IFNAME": "ib0"}
    variables.clear()
    gpu.choose_interface("127.0.0.1", variables)
    assert variables == {"GLOO_SOCKET_IFNAME": loopback}
