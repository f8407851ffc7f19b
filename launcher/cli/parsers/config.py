"""The arguments of `swin-moe config`."""

from launcher.console.arguments import CommandParser, add_json

EPILOG = """\
examples:
  swin-moe config swinv2_tiny_patch4_window8_256 train.duration="100 epochs"
  swin-moe config mine.yaml --diff demo_cpu          the options in which the two differ
  swin-moe config runs/a/config.yaml --diff runs/b/config.yaml
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `config`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.config:run_config")
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
    add_json(parser)
    add("--diff", metavar="OTHER", help="print the options in which OTHER differs, alone")
