"""The arguments of `swin-moe completion`."""

from launcher.console.arguments import CommandParser

COMPLETION_HELP = """\
examples:
  eval "$(swin-moe completion)"                                       in ~/.bashrc
  autoload -U bashcompinit && bashcompinit && eval "$(swin-moe completion)"     in ~/.zshrc, after compinit

Commands, options, values of options and names of recipes; file names where none of them fits.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `completion`."""
    parser.epilog = COMPLETION_HELP
    parser.set_defaults(run="launcher.cli.completion:run")
    parser.add_argument("shell", nargs="?", choices=("bash",), default="bash", help="default: %(default)s")
