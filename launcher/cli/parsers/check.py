"""The arguments of `swin-moe check`, and those that it shares with `train`."""

from launcher.console.arguments import CommandParser, add_json, add_match_classes, positive


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `check`."""
    parser.set_defaults(run="launcher.cli.check:run")
    add_run(parser)
    add_json(parser)
    parser.add_argument(
        "--ranks-per-node", type=positive, metavar="M", help="show the layout of --nproc ranks on such nodes"
    )


def add_run(parser: CommandParser) -> None:
    """Add the arguments that name a run and its ranks."""
    add = parser.add_argument
    add("--nproc", type=positive, help="ranks to start on this machine")
    add_match_classes(parser)
    add("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
