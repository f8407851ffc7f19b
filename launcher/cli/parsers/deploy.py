"""The arguments of `swin-moe deploy`."""

import argparse
from pathlib import Path
from typing import get_args

from launcher.console.arguments import CommandParser, add_json, positive
from launcher.deploy.options import BATCH, KEEP_FLOAT, DeployOptions, DeviceType, TargetName
from parallel.zero.options import Precision
from swin_moe.frozen.products import ExpertProducts

EPILOG = """\
examples:
  swin-moe deploy runs/demo_cpu --to pt2                             compiled; runs under this torch
  swin-moe deploy runs/demo_cpu --to onnx --batch 8                  for ONNX Runtime; always 8 images
  swin-moe deploy runs/demo_cpu --to onnx-int8 --keep-float merging,fc2
  swin-moe deploy runs/demo_cpu --to pt2 --precision bf16 --out demo-bf16
  swin-moe deploy weights.pth --config swin_tiny_patch4_window7_224 --to onnx --data imagenet/val --out t

An artifact is a folder: the program, card.json, and sixteen images with the model's logits. It gets its name
only when its own runtime, in a new process, has reproduced these logits and the accuracy on data.val.
See docs/inference.md.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `deploy`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.deploy:run_deploy")
    add = parser.add_argument
    add("source", metavar="RUN", help="a run, a checkpoint, or weights of any format")
    add("--to", choices=get_args(TargetName), required=True, help="the kind of program")
    add("--out", type=Path, metavar="DIR", help="the folder to make; default: RUN/artifacts/TARGET-PRECISION")
    add("--config", metavar="CONFIG", help="the recipe of weights that do not know their model")
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--precision", choices=get_args(Precision), default="fp32", help="default: %(default)s")
    add("--device", choices=get_args(DeviceType), default="cpu", help="where it runs (default: %(default)s)")
    add(
        "--batch",
        type=batch_range,
        default=BATCH,
        metavar="N | M..N",
        help=f"images of a call of the program (default: {BATCH[0]}..{BATCH[1]}); whoever calls may have any",
    )
    add("--experts", choices=get_args(ExpertProducts), help="how experts run; default: by their number")
    _add_images(parser)
    add_json(parser)


def _add_images(parser: CommandParser) -> None:
    add, defaults = parser.add_argument, DeployOptions
    add("--data", metavar="DIR", help="shards for golden images and the accuracy; default: data.val")
    add("--verify-images", type=positive, metavar="N", help="judge the first N images; default: all")
    add("--seed", type=int, default=defaults.seed, metavar="N", help="of drawn images (default: %(default)s)")
    add("--calibration-data", metavar="DIR", help="onnx-int8: shards to calibrate on; default: data.train")
    add(
        "--calibration-images",
        type=positive,
        default=defaults.calibration_images,
        metavar="N",
        help="onnx-int8 (default: %(default)s)",
    )
    add(
        "--keep-float",
        type=kept,
        default=(),
        metavar=",".join(KEEP_FLOAT),
        help="onnx-int8: layers that stay in fp32 (default: none)",
    )


def batch_range(text: str) -> tuple[int, int]:
    """`8` or `1..32`.

    Raises:
        ArgumentTypeError: it is something else.
    """
    fewest, dots, most = text.partition("..")
    parts = (fewest, most if dots else fewest)
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in parts)
    if not 1 <= numbers[0] <= numbers[1]:
        raise argparse.ArgumentTypeError(f"must be a number of images such as 8, or 1..32 (got {text!r})")
    return numbers[0], numbers[1]


def kept(text: str) -> tuple[str, ...]:
    """Names of KEEP_FLOAT between commas.

    Raises:
        ArgumentTypeError: another name.
    """
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in KEEP_FLOAT]:
        raise argparse.ArgumentTypeError(f"no layers {unknown[0]!r}; known: {', '.join(KEEP_FLOAT)}")
    return names
