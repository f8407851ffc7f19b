"""Commands of the command line, and values that several of them take."""

import argparse
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NoReturn, TypeAlias, get_args

from parallel.suggest import suggestion
from parallel.zero.options import Precision

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"
Fill: TypeAlias = "Callable[[CommandParser], None]"


class CommandParser(argparse.ArgumentParser):
    """The parser of a command: it suggests the nearest command for an unknown one.

    Its arguments are added when the command is parsed. Help and errors of the other commands import nothing
    that the arguments need, such as the names of all codecs.

    Args:
        fill: adds the arguments; None if the caller does.
        options: of argparse.
    """

    _names: str | None = None  # of its commands

    def __init__(self, *, fill: "Fill | None" = None, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._fill = fill

    def filled(self) -> "CommandParser":
        """This parser with its arguments."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return self

    def commands(self) -> Iterator["CommandParser"]:
        """This parser, and those of all commands below it, with their arguments."""
        yield self.filled()
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.commands()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with the arguments of this command added first."""
        self.filled()
        return super().parse_known_args(args, namespace)

    def add_subparsers(self, **options: Any) -> Any:
        """As argparse's; the names of the commands are remembered for `error`."""
        self._names = options.get("metavar")
        return super().add_subparsers(**options)

    def error(self, message: str) -> NoReturn:
        """Print the usage and a message, and end with status 2."""
        if message.endswith(f"required: {self._names}"):
            message = f"which command? See {self.prog} --help"
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError for a value that the action does not have."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            hint = suggestion(str(value), action.choices, f"see {self.prog} --help")
            raise argparse.ArgumentError(None, f"no command {value!r}; {hint}")
        super()._check_value(action, value)


def add_command(commands: Commands, name: str, text: str, fill: Fill) -> None:
    """Add a command whose help keeps its line breaks.

    Args:
        commands: to which it is added.
        name: of the command.
        text: what it does, in one line; also at the head of its own help.
        fill: adds its arguments. It sets `run`, the MODULE:FUNCTION that carries the command out, and
            `epilog`, examples and details for the end of its help.
    """
    commands.add_parser(name, help=text, description=text, fill=fill)


def arguments_in(module: str) -> Fill:
    """The function `add_arguments` of a module, which is imported when the command is parsed."""

    def fill(parser: CommandParser) -> None:
        import_module(module).add_arguments(parser)

    return fill


def count(text: str) -> int:
    """A whole number of at least 0.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0 (got {text!r})")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 (got {text!r})")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def positives(text: str) -> tuple[int, ...]:
    """Different whole numbers of at least 1, with commas between them.

    Raises:
        ArgumentTypeError: it is something else.
    """
    numbers = tuple(map(positive, text.split(",")))
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"must be different numbers (got {text!r})")
    return numbers


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`: see launcher/console/answers.py."""
    parser.add_argument("--json", action="store_true", help="print one JSON document, all else on stderr")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and its options, for `launcher.deploy.artifact.open_predictor`."""
    parser.add_argument(
        "model", metavar="MODEL", help="an artifact, a run, a checkpoint, or weights of any format"
    )
    add_model_options(parser)


def add_model_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of a model, for `launcher.deploy.artifact.open_predictor`."""
    add = parser.add_argument
    add("--config", metavar="CONFIG", help="the recipe of weights that do not know their model")
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--precision", choices=get_args(Precision), help="to compute in; default: the artifact's, or fp32")
    add("--device", choices=("cpu", "cuda"), help="to compute on; default: the artifact's, or cpu")


def add_averages(parser: argparse.ArgumentParser) -> None:
    """Add `--ema` and `--teacher`: the kind of weights, as parallel/experts/names.py names it."""
    one = parser.add_mutually_exclusive_group()
    for kind, text in {
        "ema": "the moving average of the weights (train.ema_decay)",
        "teacher": "the moving average that the task's teacher computes with",
    }.items():
        one.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=text)
    parser.set_defaults(kind="master")


def add_match_classes(parser: argparse.ArgumentParser) -> None:
    """Add `--match-classes`, whose value is a list of overrides: of one option, or none."""
    parser.add_argument(
        "--match-classes",
        action="store_const",
        const=["data.match_classes=true"],
        default=[],
        help="map the labels of data.val by class name; short for data.match_classes=true",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, a number of processes."""
    parser.add_argument("--workers", type=int, default=1, help="processes (default %(default)s)")
