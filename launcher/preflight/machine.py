"""Preflight of the machines: clocks, the speed of a matrix product, threads, open files, shared memory."""

import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.stream.reader import OPEN_SHARDS
from launcher.preflight.report import Here, Seen, Verdict, gib, noise_s, slow

MAX_SKEW_S = 2.0
SLOW_COMPUTE = 1.5  # times the median
SAMPLES = 3
FILES, MANY_RANKS = 4096, 64
SHM_BYTES = 2**29


def look_at_clock(here: Here) -> float:
    """The time of day at a moment that all ranks share."""
    return here.met_s


def judge_clocks(seen: Seen) -> Verdict:
    """Nothing depends on clocks but the age of a lock and the order of log lines."""
    nodes = {seen.places[ranks[0]].node: min(seen.values[r] for r in ranks) for ranks in seen.nodes}
    early, late = min(nodes, key=nodes.__getitem__), max(nodes, key=nodes.__getitem__)
    skew_s = nodes[late] - nodes[early]
    found = Verdict(told=f"{skew_s:.3f} s apart on {len(nodes)} node{'s' * (len(nodes) > 1)}")
    if skew_s > MAX_SKEW_S:
        found.warnings.append(
            f"the clock of node {late} is {skew_s:.1f} s ahead of that of node {early}: training does not "
            "mind, the age of a lock and the order of log lines do; see to NTP"
        )
    return found


def look_at_compute(here: Here) -> float:
    """Seconds of a matrix product, the best of a few."""
    size = 4096 if here.device.type == "cuda" else 256
    left = torch.ones(size, size, device=here.device)
    return min([_product_s(left) for _ in range(1 + SAMPLES)][1:])


def _product_s(left: torch.Tensor) -> float:
    began_s = time.perf_counter()
    product(left)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - began_s


def product(left: torch.Tensor) -> torch.Tensor:
    """A square matrix times itself."""
    return left @ left


def judge_compute(seen: Seen) -> Verdict:
    """No rank much slower than the others."""
    seconds, usual = dict(enumerate(seen.values)), statistics.median_low(seen.values)
    worst = max(seen.values)
    found = Verdict(told=f"a matrix product in {1e3 * usual:.2f} ms, in {1e3 * worst:.2f} ms at the slowest")
    if late := slow(seconds, SLOW_COMPUTE, noise_s(seen.device_type)):
        found.warnings.append(
            f"compute takes up to {worst / usual:.1f} times the median on {seen.where(late)}; look for other "
            "processes, power caps and heat there"
        )
    return found


def look_at_limits(here: Here) -> dict[str, Any]:
    """Threads and the cores they may use, open files, shared memory."""
    found = {
        "threads": torch.get_num_threads(),
        "cores": sum(1 << core for core in os.sched_getaffinity(0)),  # a bit each
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "shards": _shards(here),
    }
    if here.device.type == "cuda" and Path("/dev/shm").is_dir():
        found["shm"] = shutil.disk_usage("/dev/shm").total
    return found


def _shards(here: Here) -> int:
    """Of a local training split; 0 where that is not known without asking a storage far away."""
    try:
        return len(Manifest.load(here.config.data.train).shards) if here.config else 0
    except DataError:
        return 0


def judge_limits(seen: Seen) -> Verdict:
    """Enough of each."""
    first = seen.values[0]
    found = Verdict(told=f"{_threads(seen, seen.nodes[0])}, {first['files']} open files")
    for ranks in seen.nodes:
        if sum(seen.values[rank]["threads"] for rank in ranks) > _cores(seen, ranks):
            found.warnings.append(
                f"{_threads(seen, ranks)}, on {seen.where(ranks)}: lower OMP_NUM_THREADS, or start fewer "
                "ranks on a node"
            )
    found.warnings += seen.each(_few_files(value, len(seen.places)) for value in seen.values)
    found.warnings += seen.each(_small_shm(value) for value in seen.values)
    return found


def _cores(seen: Seen, ranks: list[int]) -> int:
    """Cores that these ranks have together: bound to some each, or all to the same."""
    mask = 0
    for rank in ranks:
        mask |= seen.values[rank]["cores"]
    return mask.bit_count()


def _threads(seen: Seen, ranks: list[int]) -> str:
    threads = sum(seen.values[rank]["threads"] for rank in ranks)
    return f"{threads} threads of {len(ranks)} ranks on {_cores(seen, ranks)} cores"


def _few_files(value: dict[str, Any], world_size: int) -> str | None:
    many = f"{world_size} ranks" if world_size >= MANY_RANKS else ""
    many = many or (f"{value['shards']} shards" if value["shards"] >= OPEN_SHARDS else "")
    if not many or value["files"] >= FILES:
        return None
    return f"{value['files']} open files are few for {many}; ulimit -n {FILES}"


def _small_shm(value: dict[str, Any]) -> str | None:
    shm = value.get("shm", SHM_BYTES)
    if shm >= SHM_BYTES:
        return None
    return f"/dev/shm has {gib(shm)}, and NCCL wants more; give the container --shm-size=1g"
