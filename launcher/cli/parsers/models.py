"""The arguments of `swin-moe models`."""

from pathlib import Path

from launcher.console.arguments import CommandParser

EPILOG = """\
examples:
  swin-moe models                                    some minutes: every model is built, without memory
  swin-moe models --names                            the name of every recipe, at once
  swin-moe models --filter swinv2_tiny
  swin-moe models --filter moe --json models.json

Parameters and FLOPs are counted from the models; active parameters are those that one token meets. One
multiply-add counts as one. Exit status 1: a figure differs from the published one, as far as that is printed.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `models`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.models:run")
    add = parser.add_argument
    add("--filter", default="", metavar="TEXT", help="only names that contain TEXT")
    add("--json", type=Path, metavar="FILE", help="write the table there too, unrounded")
    add(
        "--names",
        dest="run",
        action="store_const",
        const="launcher.cli.model_names:run",
        help="print the names of all recipes alone, which `train` takes",
    )
