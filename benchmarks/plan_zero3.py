"""Host time of DeepSpeed's hooks of ZeRO 3, a call of a module: python -m benchmarks.plan_zero3

`plan --calibrate` measures the same on the machine at hand. The profiles in configs/hardware/ have the figure
of one rank, `zero3_module_us`, without what collectives add. Processor seconds; the median of `--rounds`.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.plan.base.stopwatch import Stopwatch
from launcher.plan.time.calibrate import SMALL
from launcher.plan.time.zero3_hooks import hooks_s
from tests.distributed import run_on_ranks

RANKS, LIMIT_S = (1, 2), 900


def measured(rounds: int) -> list[float]:
    """On a rank: microseconds of a module, once a round."""
    watch = Stopwatch(torch.device("cpu"), dist.get_world_size(), processor=True)
    return [hooks_s(watch, SMALL) * 1e6 for _ in range(rounds)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the values here as well")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    args = parser.parse_args()
    values: dict[int, list[float]] = {}
    for ranks in RANKS:
        values[ranks] = run_on_ranks(measured, ranks, args.rounds, timeout_s=LIMIT_S)[0]
        every = ", ".join(f"{value:.0f}" for value in values[ranks])
        print(f"{ranks} ranks: {statistics.median(values[ranks]):.0f} us a module ({every})", flush=True)
    if args.json:
        args.json.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
