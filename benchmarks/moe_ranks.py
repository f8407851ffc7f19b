"""The part of benchmarks/moe.py that runs on several gloo ranks of this machine, which meet through a file.

`on_ranks` starts them; each is this file run as a script. Seconds are CPU seconds of a whole rank, its gloo
threads included, mean over the ranks. The exposed share is how much of a step's wall time the computing
thread neither runs nor waits for a core (/proc/thread-self/schedstat): it waits for another rank.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from moe_layers import Entry, LayerCase, Work, peak_bytes, works_of
from rank_processes import run_ranks

from parallel.ranks.collectives import gather_objects
from parallel.ranks.init import join, leave, prepare_process
from parallel.ranks.mesh import ParallelDims, build_mesh
from parallel.ranks.rank import Ranks
from parallel.zero.start import start_deepspeed

Row = dict[str, Any]
LIMIT_S = 3600


def on_ranks(case: LayerCase, entries: list[Entry], rounds: int) -> list[Row]:
    """One row a contestant, measured on `case.world_size` ranks with `case.tokens` tokens each."""
    with tempfile.TemporaryDirectory() as directory:
        job = {"case": asdict(case), "entries": [asdict(entry) for entry in entries], "rounds": rounds}
        Path(directory, "job.json").write_text(json.dumps(job))
        arguments = [[rank, directory] for rank in range(case.world_size)]
        run_ranks(__file__, arguments, LIMIT_S, {"TORCH_EXTENSIONS_DIR": directory})
        return json.loads(Path(directory, "rows.json").read_text())


def _thread_s() -> tuple[float, float]:
    """Seconds of this thread on a core, and waiting for one."""
    running, waiting, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(running) / 1e9, int(waiting) / 1e9


def _sample(work: Work) -> tuple[float, float, float]:
    """CPU seconds of this rank, wall seconds, and the share of these in which its computing thread blocks."""
    dist.barrier()
    cpu, wall, thread = time.process_time(), time.perf_counter(), sum(_thread_s())
    work()
    cpu, wall, thread = time.process_time() - cpu, time.perf_counter() - wall, sum(_thread_s()) - thread
    return cpu, wall, max(0.0, 1.0 - thread / wall)


def _measure(case: LayerCase, entries: list[Entry], rounds: int) -> list[Row]:
    mesh = build_mesh(ParallelDims(world_size=case.world_size, ep_size=case.world_size))
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed tells which groups it makes
        works = works_of(case, entries, mesh, seed=mesh.rank)
    for work in [*works.values()] * 2:
        work()
    samples = [{entry: _sample(work) for entry, work in works.items()} for _ in range(rounds)]
    rows = []
    for entry, work in works.items():
        own = [statistics.median(column) for column in zip(*(s[entry] for s in samples), strict=True)]
        cpu, wall, exposed = (statistics.mean(column) for column in zip(*gather_objects(own), strict=True))
        row = {"seconds": cpu, "wall_seconds": wall, "exposed_share": exposed}
        rows.append({**asdict(entry), **row, "peak_bytes": max(gather_objects(peak_bytes(work, "cpu")))})
    return rows


def main(rank: int, directory: Path) -> None:
    """One rank; the first writes the rows."""
    torch.set_num_threads(1)
    job = json.loads((directory / "job.json").read_text())
    case, entries = LayerCase(**job["case"]), [Entry(**entry) for entry in job["entries"]]
    size = case.world_size
    ranks = Ranks.that_meet_at(directory / "meet", rank, size)
    join(ranks, prepare_process(ranks))
    start_deepspeed()
    rows = _measure(case, entries, job["rounds"])
    if rank == 0:
        (directory / "rows.json").write_text(json.dumps(rows))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
