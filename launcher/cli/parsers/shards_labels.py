"""The arguments of `swin-moe shards labels`."""

from pathlib import Path

from launcher.cli.parsers.shards_source import add_source
from launcher.console.arguments import CommandParser, add_json

LABELS_HELP = """\
example, ReaL of ImageNet-1K:
  swin-moe shards labels data/in1k/val --source folder --directory in1k --images real.json --out r.json
  swin-moe eval runs/mine --labels r.json

FILE of --images is a JSON mapping of file names to classes, a JSON list of the images sorted by file name, or
a text with a name and its classes in each line. A class is a number or a name. The source must be the one
that the split was packed from: it says which image is where.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `labels`."""
    parser.epilog = LABELS_HELP
    parser.set_defaults(run="launcher.cli.shards_labels:run_labels")
    add = parser.add_argument
    add("split", type=Path, metavar="DIRECTORY", help="a split that was packed")
    add(
        "--images",
        type=Path,
        required=True,
        metavar="FILE",
        help="the right classes of its images, by file name",
    )
    add("--out", type=Path, required=True, help="the file to write, for `eval --labels`")
    add_source(parser, required=True)
    add_json(parser)
    add("--seed", type=int, default=0, help="of synthetic images (default %(default)s)")
