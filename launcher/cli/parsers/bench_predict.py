"""The arguments of `swin-moe bench predict`."""

from launcher.cli.parsers.bench_images import add_images
from launcher.console.arguments import CommandParser, add_json, add_model_options, positive, positives

EPILOG = """\
examples:
  swin-moe bench predict runs/demo_cpu
  swin-moe bench predict runs/demo_cpu runs/demo_cpu/artifacts/* --batch 1,8,32 --threads 1 --rounds 100
  swin-moe bench predict swin_tiny_patch4_window7_224 --batch 1 --files photos     a recipe: initial weights

Each MODEL is a run, a checkpoint, a recipe, weights of any format or an artifact. The models take turns, a
call each, and decoding and the model are timed apart. Files are read into memory before the clock starts.
--config, --ema, --precision and --device are for models that are no artifacts: those have their own.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `bench predict`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.bench_predict:run")
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="what to measure; the ratios are to the first one")
    add_model_options(parser)
    add(
        "--batch",
        type=positives,
        default=(1, 8, 32),
        metavar="B,B...",
        help="images of a call; several are measured one after another (default 1,8,32)",
    )
    add("--threads", type=positive, metavar="N", help="of the processor, for the model; default: torch's")
    add(
        "--rounds",
        type=positive,
        default=50,
        metavar="N",
        help="calls of each model and batch (default %(default)s)",
    )
    add_images(parser)
    add_json(parser)
