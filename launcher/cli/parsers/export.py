"""The arguments of `swin-moe export`, which is a command of its own and one of `checkpoint`."""

from pathlib import Path

from launcher.cli.parsers.convert import add_out
from launcher.console.arguments import CommandParser, add_averages

EPILOG = """\
examples:
  swin-moe export runs/demo out.safetensors
  swin-moe export runs/demo out.safetensors --ema                     the moving average of the weights
  swin-moe export runs/mine out.safetensors --teacher                 the average of the task's teacher
  swin-moe export runs/swinv2_tiny swinv2-hf --to hf --checkpoint step-00001000     for transformers

The whole model with its configuration, whatever layout wrote it; verified first. Of a task whose model has no
classifier, the backbone; of segmentation and detection also the heads. OUT is never overwritten.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `export`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.convert:run_export")
    parser.add_argument("source", type=Path, metavar="RUN", help="the run directory")
    add_out(parser)
    parser.add_argument("--checkpoint", help="step-NNNNNNNN, or best; default: the newest")
    add_averages(parser)
