"""The command line: its commands by name, and how a command runs and ends.

The arguments of a command are in `launcher/cli/parsers`, which imports no torch, and its work is in a module
that is imported when the command runs. So help, errors and small commands start at once.
"""

import argparse
import os
import platform
import signal
import sys
from typing import TYPE_CHECKING, Any

from launcher.console.answers import answering
from launcher.console.arguments import CommandParser, add_command, arguments_in
from launcher.errors import RunError
from launcher.exit_codes import ExitCode
from launcher.process.signals import unblock_signals
from launcher.process.user_errors import USER_ERRORS, print_error
from parallel.plug_ins import imported
from parallel.ranks.discover import early_rank, without_local_rank
from parallel.ranks.logs import set_up_logging
from parallel.ranks.variables import LaunchError

if TYPE_CHECKING:  # it imports torch
    from launcher.process.run_rank import Runtime

DESCRIPTION = """\
Train expert-parallel Swin Transformers from WebDataset shards.

  swin-moe shards pack --source fashion-mnist --out data/fashion-mnist
  swin-moe check configs/demo_cpu.yaml --nproc 2
  swin-moe train configs/demo_cpu.yaml --nproc 2
  swin-moe eval runs/demo_cpu --nproc 2
  swin-moe models --filter swinv2_tiny
  swin-moe config swinv2_tiny_patch4_window8_256 train.duration="100 epochs"

CONFIG is a YAML file or the name of a recipe, which `swin-moe models --names` lists.
"""
COMMANDS = {  # what each does; its arguments are in the module of its name in launcher/cli/parsers
    "check": "find everything that is wrong with a run",
    "train": "train a model",
    "config": "print every option of a configuration, resolved, as YAML",
    "options": "what each option means: type, default, unit",
    "eval": "evaluate a run's checkpoint",
    "preflight": "check all ranks, nodes and links",
    "plan": "memory, time and layout of a run, before it is queued",
    "shards": "make, verify, repair, split and count shards of images",
    "bench": "measure this machine",
    "models": "every named model: parameters and FLOPs beside the published ones",
    "convert": "weights from one format to another",
    "export": "the weights of a run",
    "predict": "what a model says of images",
    "deploy": "make a trained model a program that runs elsewhere, and check it",
    "serve": "a model behind HTTP, with a page to try it",
    "checkpoint": "list, verify, compare, import and prune checkpoints",
    "slurm": "submit runs to a Slurm cluster and look after them",
    "study": "train and evaluate a grid of runs, and report on it",
    "completion": "a script that completes command lines in a shell",
}


def main(arguments: list[str] | None = None, runtime: "Runtime | None" = None) -> int:
    """Run one command; returns the exit status.

    Args:
        arguments: of the command line; None is this process's.
        runtime: how this process becomes a rank, where the command has ranks.
    """
    set_up_logging(early_rank())  # a rank repeats it, when it knows its world
    arguments = without_local_rank(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(arguments, runtime)
    except (*USER_ERRORS, LaunchError) as error:
        print_error(error)
        return ExitCode.USER_ERROR
    except RunError as error:
        print_error(error)
        return error.code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def run(arguments: list[str], runtime: "Runtime | None" = None) -> int:
    """Run one command, as `main` does, without catching its errors."""
    args = parse(arguments)
    args.runtime = runtime
    if not args.listens:
        unblock_signals()
    with answering(args):
        code = int(imported(args.run)(args, arguments))
    sys.stdout.flush()
    return code


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line whose overrides may stand anywhere; argparse wants positionals in one place.

    Returns:
        The arguments. `run` is the MODULE:FUNCTION that carries the command out. `listens` says that it is
        a rank or the parent of ranks, which takes requests to stop as soon as it can.
    """
    parser = program_parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "overrides") or any(a.startswith("-") for a in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def program_parser() -> CommandParser:
    """The parser of `swin-moe`. The arguments of a command are added when it is parsed."""
    parser = CommandParser(prog="swin-moe", description=DESCRIPTION)
    parser.set_defaults(listens=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name, text in COMMANDS.items():
        add_command(commands, name, text, arguments_in(f"launcher.cli.parsers.{name}"))
    return parser


class _Version(argparse.Action):
    """Prints the version of this package, and of what a report of a fault must name."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from parallel.versions import version_of  # reads the metadata of packages, which takes a while

        others = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "deepspeed"))
        print(f"swin-moe {version_of('swin-moe')} ({others}, Python {platform.python_version()})")
        parser.exit()
