"""The arguments of `swin-moe convert`, and those that it shares with `export`."""

from pathlib import Path

from launcher.console.arguments import CommandParser, add_json
from swin_moe.weights.formats import FORMATS

EPILOG = """\
examples:
  swin-moe convert swinv2_tiny_patch4_window8_256.pth out.safetensors --to native \\
      --config swinv2_tiny_patch4_window8_256
  swin-moe convert hf-folder out.pth --to official --config swin_tiny_patch4_window7_224
  swin-moe convert moe.pth out.safetensors --to native --config CONFIG     of moe.pth.rank0, .rank1, ...
  swin-moe convert in22k.pth out --to hf --config CONFIG --head map22kto1k.txt

IN is recognised by its content: official files and sets of rank files, those of masked image
modeling, segmentation, detection and video models (official, OpenMMLab), torchvision's video
models, transformers, timm, ours. Weights of images are inflated for a model of clips.
Every tensor of IN and of the model is used or named. OUT is never overwritten. See docs/weights.md.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `convert`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.convert:run_convert")
    parser.add_argument(
        "source", type=Path, metavar="IN", help="a file, a folder, a run or a set of rank files"
    )
    add_out(parser)
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help="the recipe or YAML file of the model; not needed for what this program wrote",
    )
    parser.add_argument(
        "--head",
        default="strict",
        metavar="strict | replace | FILE",
        help="a classifier of another size: refuse it, put a new one in its place, or pick its classes by a "
        "class map (default: %(default)s)",
    )
    parser.add_argument("--ema", action="store_true", help="the moving average that IN holds (model_ema ...)")


def add_out(parser: CommandParser) -> None:
    """Add what is written, and in which format."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the file, or for hf the folder, to write")
    add_json(parser)
    parser.add_argument("--to", choices=FORMATS, default="native", help="default: %(default)s")
