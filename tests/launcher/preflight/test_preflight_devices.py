"""GPUs by what nvidia-smi said of them, recorded; and what a preflight says of such nodes."""

import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from launcher.config.load import load_config
from launcher.config.time_limits import seconds_of
from launcher.preflight import devices as preflight_devices
from launcher.preflight.report import ProbeResults, Verdict
from parallel.ranks import devices
from parallel.ranks.bandwidth import RankNode
from parallel.ranks.devices import DeviceError, Gpu, as_json, gpus, node_gpus, own_device
from tests.launcher.running import CONFIG
from tests.messages import assert_each_names

A, B = "GPU-6f0dbf7e-0f5f-2d9c-96a1-c34c30a5b1f1", "GPU-0b7d3c1e-5a4f-8e21-2f77-9d1f6c1c9b02"
TABLE = f"{A}, 81559, 80994, 0\n{B}, 81559, 80994, [N/A]\n"
APPS = f"{A}, 101, /usr/bin/python3.11\n{B}, 102, python, -u\n"


def test_the_tables() -> None:
    assert gpus(TABLE, APPS) == [
        Gpu(uuid=A, total_mib=81559, free_mib=80994, ecc_errors=0, processes={101: "/usr/bin/python3.11"}),
        Gpu(uuid=B, total_mib=81559, free_mib=80994, ecc_errors=None, processes={102: "python, -u"}),
    ]
    assert gpus(TABLE, "")[0].processes == {}
    assert gpus(TABLE, f"{A}, [Insufficient Permissions], [Insufficient Permissions]\n")[0].processes == {}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("No devices were found\n", "nvidia-smi said 'No devices were found', not 4 columns"),
        (f"{A}, [N/A], [N/A], 0\n", f"nvidia-smi does not know the memory of {A} ([N/A], [N/A])"),
    ],
)
def test_tables_that_are_not(table: str, reason: str) -> None:
    with pytest.raises(DeviceError) as error:
        gpus(table, "")
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"side_effect": FileNotFoundError}, "there is no nvidia-smi here"),
        ({"side_effect": subprocess.TimeoutExpired("x", 1)}, "nvidia-smi did not answer in 15 s"),
        (
            {
                "return_value": subprocess.CompletedProcess(
                    [], 9, "Unable to determine the device handle\n", ""
                )
            },
            "nvidia-smi failed: Unable to determine the device handle",
        ),
    ],
)
def test_an_nvidia_smi_that_does_not_answer(answer: dict[str, Any], reason: str) -> None:
    with mock.patch.object(devices.subprocess, "run", **answer), pytest.raises(DeviceError) as error:
        node_gpus()
    assert str(error.value) == reason


def value(uuid: str, pid: int, **more: Any) -> dict[str, Any]:
    """What a rank saw."""
    usual = {"uuid": uuid, "pid": pid, "name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "visible": 2}
    return {**usual, **more}


def judged(*values: dict[str, Any], table: str = TABLE, apps: str = APPS) -> Verdict:
    """Two ranks on node a, further ones on node b."""
    first, *others = values
    message = [{**first, "table": as_json(gpus(table, apps))}, *others]
    places = [RankNode(rank, "aabb"[rank]) for rank in range(len(values))]
    config = load_config(CONFIG, ["train.precision=bf16", f"data.train={Path.cwd()}"])
    return preflight_devices.evaluate(
        ProbeResults(places=places, values=message, config=config, device_type="cuda")
    )


def test_sound_gpus() -> None:
    assert judged(value(A, 101), value(B, 102)) == Verdict(message="2 x NVIDIA H100 80GB HBM3")


def test_two_ranks_on_one_gpu() -> None:
    found = judged(value(A, 101, visible=1), value(A, 102, visible=1))
    assert_each_names(found.failures, ("ranks 0-1 (node a)", f"({A})"))


def test_gpus_of_two_kinds_one_of_which_cannot_do_bf16() -> None:
    found = judged(value(A, 101), value(B, 102), value("GPU-c", 103, name="Tesla V100", capability=[7, 0]))
    assert_each_names(
        found.failures,
        ("NVIDIA H100 80GB HBM3 on ranks 0-1, Tesla V100 on rank 2 (node b)",),
        ("rank 2 (node b): Tesla V100", "bf16", "train.precision=fp16"),
    )


def test_a_gpu_with_memory_errors() -> None:
    found = judged(value(A, 101), value(B, 102), table=TABLE.replace("80994, 0", "80994, 3"))
    assert_each_names(found.warnings, (f"rank 0 (node a) ({A})", "3 uncorrected memory errors"))


def test_another_s_process() -> None:
    apps, full = f"{APPS}{B}, 999, notebook\n", TABLE.replace("80994, [N/A]", "1000, [N/A]")
    parts = (f"rank 1 (node a) ({B})", "notebook (999)")
    assert_each_names(judged(value(A, 101), value(B, 102), apps=apps).warnings, parts)
    warnings = judged(value(A, 101), value(B, 102), apps=apps, table=full).warnings
    assert_each_names(warnings, (*parts, "1000 of 81559 MiB"))


def test_in_a_container_the_process_ids_say_nothing() -> None:
    assert judged(value(A, 7), value(B, 8)).warnings == []


def test_no_table() -> None:
    found = judged(value(A, 101), value(B, 102), value("GPU-c", 1, error="there is no nvidia-smi here"))
    assert_each_names(found.warnings, ("rank 2 (node b): ", "there is no nvidia-smi here"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45", 45),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-02:03:04", 93784),  # 86400 + 7200 + 180 + 4
        ("3-00", 259200),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
    ],
)
def test_what_squeue_says_is_left(text: str, seconds: float | None) -> None:
    assert seconds_of(text, alone_s=1) == seconds


@pytest.mark.gpu
def test_this_gpu() -> None:
    own = own_device(torch.device("cuda", 0))
    assert own["uuid"] in [gpu.uuid for gpu in node_gpus()]
    assert own["visible"] == torch.cuda.device_count()
