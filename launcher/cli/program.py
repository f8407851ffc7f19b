"""The command line: its parser, and the commands `check`, `config`, `train`."""

import argparse
import json
import os
import platform
import signal
import sys

from data_shards.stream.patterns import names_tars
from data_shards.stream.webdataset import statement
from launcher.cli import bench, checkpoints, config, convert, models, plan, preflight, shards, slurm, study
from launcher.cli import evaluate as evaluation
from launcher.config.load import ConfigError, load_config
from launcher.console.arguments import CommandParser, add_command, add_match_classes, positive
from launcher.errors import RunError
from launcher.exit_codes import ExitCode
from launcher.process.local_launcher import is_parent, run_local
from launcher.process.run_rank import USER_ERRORS, Runtime, print_error
from launcher.process.signals import unblock_signals
from launcher.rundir.directory import RunDirectory
from launcher.rundir.sessions import Sessions
from launcher.scripting import train
from launcher.training.banner import banner
from launcher.validation.elastic import replan
from launcher.validation.label_spaces import class_notes
from launcher.validation.layout import full_nodes, layout, print_lines
from launcher.validation.resume_policy import check_resume
from launcher.validation.rules import check
from parallel.ranks.discover import early_rank, without_local_rank
from parallel.ranks.logs import set_up_logging
from parallel.ranks.variables import LaunchError
from parallel.versions import version_of

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
TRAIN_HELP = """\
examples:
  swin-moe train configs/demo_cpu.yaml --nproc 2
  swin-moe train configs/demo_cpu.yaml --nproc 4 parallel.ep_size=4 run_dir=runs/ep4
  swin-moe train configs/demo_cpu.yaml --nproc 2 --resume auto
  swin-moe train configs/demo_cpu.yaml --nproc 3 --resume auto --elastic    on fewer or more ranks than before
  torchrun --nproc-per-node 8 -m launcher train CONFIG         several ranks, started by torchrun,
  mpirun -n 8 swin-moe train CONFIG                            by MPI (pip install 'swin-moe[mpi]'),
  srun -n 8 swin-moe train CONFIG                              by Slurm, or by DeepSpeed's launcher:
  deepspeed --module launcher train CONFIG                     no --nproc then

Any option of the configuration can be overridden: a.b=value. All options: swin-moe options. The run directory
holds config.yaml, metrics.jsonl, summary.json, sessions.jsonl, tensorboard/ and checkpoints/.
SIGUSR1, SIGTERM and Ctrl-C stop the run after its step, saved (exit status 75); a second SIGTERM or Ctrl-C
ends it at once. Exit status 2: something that you can correct, said in one line; the others: docs/faults.md.
"""


def main(arguments: list[str] | None = None, runtime: Runtime | None = None) -> int:
    """Run one command; returns the exit status.

    Args:
        arguments: of the command line; None is this process's.
        runtime: how this process becomes a rank, where the command has ranks.
    """
    set_up_logging(early_rank())  # a rank repeats it, when it knows its world
    arguments = without_local_rank(sys.argv[1:] if arguments is None else arguments)
    try:
        args = _parse(arguments)
        args.runtime = runtime
        if args.run not in RANKS:
            unblock_signals()
        code = int(args.run(args, arguments))
        sys.stdout.flush()
        return code
    except (*USER_ERRORS, LaunchError) as error:
        print_error(error)
        return ExitCode.USER_ERROR
    except RunError as error:
        print_error(error)
        return error.code
    except BrokenPipeError:  # whoever reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _check(args: argparse.Namespace, _: list[str]) -> int:
    config = load_config(args.config, [*args.overrides, *args.match_classes])
    nodes = full_nodes(args.nproc, args.ranks_per_node) if args.nproc else None
    check(config, args.nproc, nodes, here=bool(args.nproc) and not args.ranks_per_node)
    if args.ranks_per_node and not args.nproc:
        raise ConfigError("--ranks-per-node is for a layout: say --nproc N, the number of all ranks, too")
    print(f"{args.config} is valid")
    print_lines([*banner(config, args.nproc), *layout(config, nodes or [1]), *class_notes(config)])
    if names_tars(config.data.train):
        print(statement(config.data.train))
    return 0


def _train(args: argparse.Namespace, arguments: list[str]) -> int:
    pretrained = [f"train.pretrained={json.dumps(args.pretrained)}"] if args.pretrained else []
    config = load_config(args.config, [*args.overrides, *pretrained, *args.match_classes])
    if is_parent(args.nproc):
        run = RunDirectory(config.run_dir)
        if args.elastic:
            config, _ = replan(config, args.nproc, args.nproc)  # rank 0 says how
        check(config, args.nproc, [args.nproc], here=True)
        run.lock(resume=args.resume == "auto")
        try:
            check_resume(config, run.checkpoints, allow=args.allow_change)
            Sessions(run).check(config.checkpoint.crash_budget, reset=args.reset_crashes)
        finally:
            run.unlock()  # rank 0 will hold it
        return run_local(args.nproc, arguments)

    return train(
        config,
        resume=args.resume == "auto",
        allow_change=args.allow_change,
        reset_crashes=args.reset_crashes,
        elastic=args.elastic,
        runtime=args.runtime,
    )


# commands of ranks, which listen as soon as they are ranks, and of their parent
RANKS = (_train, evaluation.run)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line whose overrides may stand anywhere; argparse wants positionals in one place."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "overrides") or any(a.startswith("-") for a in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swin-moe", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(
        required=True,
        metavar="check | train | config | options | eval | preflight | plan | shards | bench | models | "
        "convert | export | checkpoint | slurm | study",
    )
    text = "find everything that is wrong with a run"
    check_parser = add_command(commands, "check", text)
    train_parser = add_command(commands, "train", "train a model", TRAIN_HELP)
    for command, run in ((check_parser, _check), (train_parser, _train)):
        command.set_defaults(run=run)
        command.add_argument("--nproc", type=positive, help="ranks to start on this machine")
        add_match_classes(command)
    check_parser.add_argument(
        "--ranks-per-node", type=positive, metavar="M", help="show the layout of --nproc ranks on such nodes"
    )
    for command in (check_parser, train_parser):
        command.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
        command.add_argument("overrides", nargs="*", metavar="a.b=value", help="options to override")
    train_parser.add_argument(
        "--pretrained",
        metavar="FILE",
        help="weights to start from: official, Hugging Face, timm or ours; short for train.pretrained=FILE",
    )
    train_parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="never",
        help="auto: go on from the newest checkpoint of the run directory, if any (default: %(default)s)",
    )
    train_parser.add_argument(
        "--allow-change",
        action="store_true",
        help="on resume, let options differ that change what training computes (optimizer, data, duration)",
    )
    train_parser.add_argument(
        "--reset-crashes", action="store_true", help="start although the last sessions got nowhere (exit 86)"
    )
    train_parser.add_argument(
        "--elastic",
        action="store_true",
        help="fit ep_size, slices and micro-batch to the ranks that are there; the global batch stays",
    )
    config.add_parsers(commands)
    evaluation.add_parser(commands)
    preflight.add_parser(commands)
    plan.add_parser(commands)
    shards.add_parser(commands)
    bench.add_parser(commands)
    models.add_parser(commands)
    convert.add_parsers(commands)
    checkpoints.add_parser(commands)
    slurm.add_parser(commands)
    study.add_parser(commands)
    return parser


def _versions() -> str:
    """The version of this package, and of what a report of a fault must name."""
    others = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "deepspeed"))
    return f"swin-moe {version_of('swin-moe')} ({others}, Python {platform.python_version()})"
