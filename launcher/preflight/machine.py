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
from launcher.preflight.report import ProbeContext, ProbeResults, Verdict, gib, noise_s, slow

MAX_SKEW_S = 2.0
SLOW_COMPUTE = 1.5  # times the median
SAMPLES = 3
FILES, MANY_RANKS = 4096, 64
SHM_BYTES = 2**29


def probe_clock(context: ProbeContext) -> float:
    """The time of day at a moment that all ranks share."""
    return context.met_s


def evaluate_clocks(results: ProbeResults) -> Verdict:
    """Nothing depends on clocks but the age of a lock and the order of log lines."""
    nodes = {results.places[ranks[0]].node: min(results.values[r] for r in ranks) for ranks in results.nodes}
    early, late = min(nodes, key=nodes.__getitem__), max(nodes, key=nodes.__getitem__)
    skew_s = nodes[late] - nodes[early]
    verdict = Verdict(message=f"{skew_s:.3f} s apart on {len(nodes)} node{'s' * (len(nodes) > 1)}")
    if skew_s > MAX_SKEW_S:
        verdict.warnings.append(
            f"the clock of node {late} is {skew_s:.1f} s ahead of that of node {early}: training does not "
            "mind, the age of a lock and the order of log lines do; see to NTP"
        )
    return verdict


def probe_compute(context: ProbeContext) -> float:
    """Seconds of a matrix product, the best of a few."""
    size = 4096 if context.device.type == "cuda" else 256
    left = torch.ones(size, size, device=context.device)
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


def evaluate_compute(results: ProbeResults) -> Verdict:
    """No rank much slower than the others."""
    seconds, usual = dict(enumerate(results.values)), statistics.median_low(results.values)
    worst = max(results.values)
    verdict = Verdict(
        message=f"a matrix product in {1e3 * usual:.2f} ms, in {1e3 * worst:.2f} ms at the slowest"
    )
    if late := slow(seconds, SLOW_COMPUTE, noise_s(results.device_type)):
        verdict.warnings.append(
            f"compute takes up to {worst / usual:.1f} times the median on {results.where(late)}; look for "
            "other processes, power caps and heat there"
        )
    return verdict


def probe_limits(context: ProbeContext) -> dict[str, Any]:
    """Threads and the cores they may use, open files, shared memory."""
    limits = {
        "threads": torch.get_num_threads(),
        "cores": sum(1 << core for core in os.sched_getaffinity(0)),  # a bit each
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "shards": _shards(context),
    }
    if context.device.type == "cuda" and Path("/dev/shm").is_dir():
        limits["shm"] = shutil.disk_usage("/dev/shm").total
    return limits


def _shards(context: ProbeContext) -> int:
    """Of local training splits; 0 where that is not known without asking a storage far away."""
    places = context.config.data.train_places.values() if context.config else ()
    try:
        return sum(len(Manifest.load(place).shards) for place in places)
    except DataError:
        return 0


def evaluate_limits(results: ProbeResults) -> Verdict:
    """Enough of each."""
    first = results.values[0]
    verdict = Verdict(message=f"{_threads(results, results.nodes[0])}, {first['files']} open files")
    for ranks in results.nodes:
        if sum(results.values[rank]["threads"] for rank in ranks) > _cores(results, ranks):
            verdict.warnings.append(
                f"{_threads(results, ranks)}, on {results.where(ranks)}: lower OMP_NUM_THREADS, or start "
                "fewer ranks on a node"
            )
    verdict.warnings += results.each(_few_files(value, len(results.places)) for value in results.values)
    verdict.warnings += results.each(_small_shm(value) for value in results.values)
    return verdict


def _cores(results: ProbeResults, ranks: list[int]) -> int:
    """Cores that these ranks have together: bound to some each, or all to the same."""
    mask = 0
    for rank in ranks:
        mask |= results.values[rank]["cores"]
    return mask.bit_count()


def _threads(results: ProbeResults, ranks: list[int]) -> str:
    threads = sum(results.values[rank]["threads"] for rank in ranks)
    return f"{threads} threads of {len(ranks)} ranks on {_cores(results, ranks)} cores"


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
