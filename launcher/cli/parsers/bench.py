"""The commands of `swin-moe bench`, and the arguments of `bench data`."""

import argparse
from typing import TYPE_CHECKING

from launcher.console.arguments import CommandParser, add_command, add_json, arguments_in

if TYPE_CHECKING:
    from data_shards.image.geometry import ImageSize

HERE = "launcher.cli.parsers.bench"
DATA_HELP = """\
examples:
  swin-moe bench data data/fashion-mnist/train --image-size 32
  swin-moe bench data data/imagenet/train --target 2000          how many cores 2000 images/s need
  swin-moe bench data data/imagenet/train --threads 8 --json

Reads DIR in the order of training, with a run's own code. storage: reading alone, after asking the system to
forget what it has in memory. The table: CPU time of each stage in one thread. stream: a whole training stream
of one process. Run it where the run will be: on the node, while the accelerators work or not, as you like.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the commands of `bench`."""
    commands = parser.add_subparsers(required=True, metavar="data | predict | serve")
    add_command(commands, "data", "how many images a second can be fed", _add_data)
    add_command(commands, "predict", "times of models by batch size", arguments_in(f"{HERE}_predict"))
    add_command(commands, "serve", "load on a server", arguments_in(f"{HERE}_serve"))


def _add_data(parser: CommandParser) -> None:
    parser.epilog = DATA_HELP
    parser.set_defaults(run="launcher.cli.bench:run")
    add = parser.add_argument
    add("directory", metavar="DIR", help="a split: a directory or an address that a run can read")
    add(
        "--image-size",
        type=image_size,
        default=224,
        metavar="SIDE | HEIGHTxWIDTH",
        help="of the pictures in pixels, such as 224 or 192x256 (default %(default)s)",
    )
    add("--images", type=int, default=1024, help="images a measurement (default %(default)s)")
    add("--batch-size", type=int, default=64, help="images a batch (default %(default)s)")
    add("--threads", type=int, help="of the stream and of the storage's reading (default: one a core)")
    add("--target", type=float, metavar="IMG_S", help="images a second to be fed: prints the cores they need")
    add_json(parser)


def image_size(text: str) -> "ImageSize":
    """One number, or two with an x between them: HEIGHTxWIDTH."""
    height, x, width = text.partition("x")
    try:
        return (int(height), int(width)) if x else int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be SIDE or HEIGHTxWIDTH") from None
