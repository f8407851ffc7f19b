"""What the preflight adds to a start: python -m benchmarks.preflight DATA [--nproc 2] [--json FILE]

DATA holds train/ and val/, such as data/synthetic. Wall-clock and CPU seconds of rank 0, on ranks that have
imported all that training imports; the first call, as of a run, and the median of the later ones.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.distributed import run_on_ranks

CALLS = 8


def calls(nproc: int, data: str, run_dir: str) -> list[tuple[float, float]]:
    """Wall-clock and CPU seconds of each call on this rank."""
    import torch
    import torch.distributed as dist

    import launcher.training.run
    from launcher.config.load import load_config
    from parallel.ranks.rank import Ranks

    places = [f"data.{split}={data}/{split}" for split in ("train", "val")]
    config = load_config("configs/debug.yaml", [*places, f"run_dir={run_dir}"])
    rank = dist.get_rank()
    ranks = Ranks(rank=rank, world_size=nproc, local_rank=rank, local_world_size=nproc)
    found = []
    for _ in range(CALLS):
        dist.barrier()
        began_s, cpu_s = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            launcher.training.run.before_training(config, ranks, torch.device("cpu"))
        found.append((time.perf_counter() - began_s, time.process_time() - cpu_s))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as run_dir:
        first, *later = run_on_ranks(calls, args.nproc, args.nproc, str(args.data.absolute()), run_dir)[0]
    found: dict[str, Any] = {"nproc": args.nproc, "first_s": first[0], "first_cpu_s": first[1]}
    found |= {"later_s": statistics.median(s for s, _ in later)}
    found |= {"later_cpu_s": statistics.median(s for _, s in later)}
    print("  ".join(f"{name} {value:.3g}" for name, value in found.items()))
    if args.json:
        args.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
