"""The arguments of `swin-moe plan`."""

import argparse
from pathlib import Path

from launcher.console.arguments import CommandParser, positive
from launcher.plan.search.failures import MTBF_GPU_H

EPILOG = """\
examples:
  swin-moe plan CONFIG --nodes 4 --gpus-per-node 8 --gpu h100-80
  swin-moe plan CONFIG --nodes 4 --gpus-per-node 8 --gpu a100-40 --search     the best layouts
  swin-moe plan CONFIG --gpu a100-80 --simulate 8..4096 --out plans            weak scaling, failures, charts
  swin-moe plan CONFIG --gpu h200 --nodes 2 --price-per-gpu-hour 3 --images 1281167     hours and price
  swin-moe plan --calibrate here.yaml --nproc 2                                a profile of this machine
  swin-moe plan CONFIG --nodes 1 --gpus-per-node 2 --gpu here.yaml

Nothing is started and no data is needed. --gpu: a100-40, a100-80, h100-80, h200, b200 (configs/hardware/),
the beginning of one of these names, or a YAML file of such figures. Speeds are upper bounds.
What is modelled, and how far off it is: docs/planner_time.md, docs/planner.md.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `plan`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.plan:run")
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
    add("--nodes", type=positive, metavar="N", help="of the cluster (default 1)")
    add("--gpus-per-node", type=positive, metavar="G", help="default: as the profile has them")
    add("--gpu", metavar="NAME|FILE", help="a hardware profile")
    add("--search", action="store_true", help="try every layout, fastest first")
    add("--top", type=positive, default=10, metavar="K", help="layouts to print (default %(default)s)")
    text = "weak scaling over so many GPUs, powers of two; a GPU keeps its micro-batches of a step on --nodes"
    add("--simulate", metavar="8..4096", help=f"{text} (without it, one)")
    add("--out", type=Path, metavar="DIR", help="of --simulate: charts as PNG and SVG")
    add("--mtbf", type=_above_zero, default=MTBF_GPU_H, metavar="H", help="GPU-hours a failure (Llama 3's)")
    add("--save", type=_above_zero, default=30.0, metavar="S", help="seconds of a checkpoint (default 30)")
    add("--restart", type=_above_zero, default=300.0, metavar="S", help="seconds of a restart (default 300)")
    add("--price-per-gpu-hour", type=_above_zero, metavar="P", help="prints the price of the run")
    add("--images", type=positive, metavar="N", help="of an epoch (default: the manifest of data.train)")
    add("--json", type=Path, metavar="FILE", help="write all values there")
    add("--calibrate", type=Path, metavar="OUT.yaml", help="measure this machine, and write a profile")
    add("--nproc", type=positive, default=1, help="of --calibrate: ranks to start (default %(default)s)")


def _above_zero(text: str) -> float:
    """A number above 0.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0 (got {text!r})")
    return value
