"""Properties of GPUs: of this rank's from torch, of the node's from nvidia-smi.

It calls `nvidia-smi` rather than NVML through a package, because every driver includes it.
"""

import os
import subprocess
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

SMI_S = 15.0  # a driver that needs longer is in trouble, and the run is to say so rather than to wait
GPU_QUERY = "--query-gpu=uuid,memory.total,memory.free,ecc.errors.uncorrected.volatile.total"
APPS_QUERY = "--query-compute-apps=gpu_uuid,pid,process_name"
FORMAT = "--format=csv,noheader,nounits"


class DeviceError(ValueError):
    """nvidia-smi is missing, does not answer, or gives an unexpected answer."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One row of nvidia-smi; memory in MiB, `ecc_errors` None where the GPU does not count them."""

    uuid: str
    total_mib: int
    free_mib: int
    ecc_errors: int | None
    processes: dict[int, str] = field(default_factory=dict)  # process id -> name


def gpus(gpu_table: str, apps_table: str) -> list[Gpu]:
    """The GPUs that nvidia-smi lists, from its answers to GPU_QUERY and APPS_QUERY.

    Raises:
        DeviceError: a row has other columns.
    """
    rows, processes = [], dict[str, dict[int, str]]()
    for uuid, pid, name in _rows(apps_table, 3):
        if pid.isdecimal():
            processes.setdefault(uuid, {})[int(pid)] = name
    for uuid, total, free, ecc in _rows(gpu_table, 4):
        if not (total.isdecimal() and free.isdecimal()):
            raise DeviceError(f"nvidia-smi does not know the memory of {uuid} ({total}, {free})")
        rows.append(
            Gpu(
                uuid=uuid,
                total_mib=int(total),
                free_mib=int(free),
                ecc_errors=int(ecc) if ecc.isdecimal() else None,
                processes=processes.get(uuid, {}),
            )
        )
    return rows


def node_gpus() -> list[Gpu]:
    """Every GPU of this node; DeviceError when nvidia-smi does not say."""
    return gpus(_ask(GPU_QUERY), _ask(APPS_QUERY))


def own_device(device: torch.device) -> dict[str, Any]:
    """This rank's GPU as torch sees it, how many it sees, and this process."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "uuid": f"GPU-{str(properties.uuid).removeprefix('GPU-')}",
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "visible": torch.cuda.device_count(),
        "pid": os.getpid(),
    }


def as_json(rows: list[Gpu]) -> list[dict[str, Any]]:
    """The table, to be sent to other ranks."""
    return [asdict(row) for row in rows]


def _ask(query: str) -> str:
    command = ["nvidia-smi", query, FORMAT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S)
    except FileNotFoundError:
        raise DeviceError("there is no nvidia-smi here") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"nvidia-smi did not answer in {SMI_S:.0f} s") from None
    if done.returncode:
        reason = (done.stdout + done.stderr).strip().splitlines()
        raise DeviceError(f"nvidia-smi failed: {reason[-1] if reason else f'status {done.returncode}'}")
    return done.stdout


def _rows(table: str, columns: int) -> list[list[str]]:
    """The cells of a table whose last column alone may hold commas."""
    rows = [line.split(", ", columns - 1) for line in table.splitlines() if line.strip()]
    for row in rows:
        if len(row) != columns:
            raise DeviceError(f"nvidia-smi said {', '.join(row)!r}, not {columns} columns")
    return [[cell.strip() for cell in row] for row in rows]
