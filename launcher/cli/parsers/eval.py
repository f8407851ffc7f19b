"""The arguments of `swin-moe eval`."""

import argparse
from pathlib import Path
from typing import get_args

from launcher.console.arguments import (
    CommandParser,
    add_averages,
    add_json,
    add_match_classes,
    count,
    positive,
)
from parallel.zero.options import Precision
from swin_moe.moe_config import MOST_CAPACITY

EPILOG = """\
examples:
  swin-moe eval runs/demo_cpu --nproc 2
  swin-moe eval runs/demo_cpu                                  one process; the experts come together
  swin-moe eval runs/demo_cpu --checkpoint step-00000234 --capacity-factor 0.5
  swin-moe eval runs/demo_cpu --sweep-capacity 0.5,0.625,1,1.25,2,0 --sweep-top-k 1,2     0: dropless
  swin-moe eval runs/demo_cpu --few-shot 5 --knn 20            on frozen features; --shots-seed, --bank
  swin-moe eval runs/demo_cpu --throughput train.eval_batch_size=64
  swin-moe eval runs/demo_cpu --confusion --affinity --labels real.json
  swin-moe eval runs/demo_cpu data.val=other/val --match-classes                      labels mapped by name
  swin-moe eval runs/mixed --val real                          a set of data.val by its name

Every image of the validation split exactly once: exact (dropless), and for an MoE at a capacity too. The
figures are the same on any number of ranks and at any batch size. Results: RUN/eval/CHECKPOINT/.
docs/evaluation.md has every option, what it computes, and the files.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `eval`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.evaluate:run", listens=True)
    add = parser.add_argument
    add("run_directory", type=Path, metavar="RUN", help="the run directory")
    add("overrides", nargs="*", metavar="a.b=value", help="options of the run to override")
    add("--nproc", type=positive, help="ranks to start on this machine")
    add("--checkpoint", help="step-NNNNNNNN, or best; default: the newest")
    add("--val", metavar="NAME", help="a set of data.val, where it has several; default: the first")
    add(
        "--precision",
        choices=get_args(Precision),
        help="to compute in; default: the training's; fp32 is exact",
    )
    add_averages(parser)
    add_json(parser)
    add_match_classes(parser)
    _add_ways(parser)
    _add_features(parser)
    add("--throughput", action="store_true", help="images/s and FLOP/s of the model alone, on one batch")
    add("--passes", type=positive, default=30, metavar="N", help="timed ones (default %(default)s)")
    add("--confusion", action="store_true", help="which class is taken for which, and the worst, as CSV")
    add("--affinity", action="store_true", help="which expert takes which classes: CSV, PNG, TensorBoard")
    add("--labels", type=Path, metavar="FILE", help="judge in another label space: ReaL, V2, 22K -> 1K")


def _add_ways(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--capacity-factor", type=_factor, metavar="F", help="beside exact; default: the training's")
    add("--sweep-capacity", type=_factors, metavar="F,F,...", help="evaluate at each; 0 is dropless")
    add("--sweep-top-k", type=_choices, metavar="K,K,...", help="and with so many choices a token")


def _add_features(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--few-shot", type=positive, metavar="K", help="ridge regression on K training images a class")
    add("--shots-seed", type=count, default=0, metavar="N", help="the first draw's (default %(default)s)")
    add("--shots-draws", type=positive, default=3, metavar="N", help="of K images (default %(default)s)")
    add("--knn", type=positive, metavar="K", help="K nearest neighbours among the training images")
    add("--bank", type=positive, metavar="N", help="training images for --knn, drawn by --shots-seed")


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= MOST_CAPACITY:
        raise argparse.ArgumentTypeError(f"must be a factor in 0 ... {MOST_CAPACITY:g} (got {text!r})")
    return factor


def _factors(text: str) -> list[float]:
    return [_factor(part) for part in text.split(",")]


def _choices(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
