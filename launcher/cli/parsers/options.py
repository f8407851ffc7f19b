"""The arguments of `swin-moe options`."""

from launcher.console.arguments import CommandParser, add_json

EPILOG = """\
examples:
  swin-moe options                    every option: type, default, unit, meaning
  swin-moe options lr                 those whose name contains it, or else those whose meaning does
  swin-moe options model.moe
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `options`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.config:run_options")
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="a part of a name")
    add_json(parser)
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/options.md")
