"""The command line: `swin-moe` and `python -m launcher`."""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.foreign import statement
from data_shards.loading import checked_manifest
from data_shards.patterns import expand, names_tars
from launcher import bench, convert, local, models, shards
from launcher.check import check, steps_in
from launcher.config import ConfigError, load_config
from launcher.errors import RankError
from launcher.run_directory import RunDirectory
from parallel.commit import CheckpointError
from parallel.env import LaunchError, Ranks, discover, join, leave, prepare_process
from parallel.mesh import LayoutError
from swin_moe.config import ModelError

EXIT_USER_ERROR = 2
PATIENCE_S = 30.0  # for whoever started the ranks to stop the others after one has failed

DESCRIPTION = """\
Train expert-parallel Swin Transformers from WebDataset shards.

  swin-moe shards pack --source fashion-mnist --out data/fashion-mnist
  swin-moe check configs/demo_cpu.yaml --nproc 2
  swin-moe train configs/demo_cpu.yaml --nproc 2
  swin-moe eval runs/demo_cpu --nproc 2
  swin-moe models --filter swinv2_tiny
"""
TRAIN_HELP = """\
examples:
  swin-moe train configs/demo_cpu.yaml --nproc 2
  swin-moe train configs/demo_cpu.yaml --nproc 4 parallel.ep_size=4 run_dir=runs/ep4
  swin-moe train configs/demo_cpu.yaml --nproc 2 --resume auto
  torchrun --nproc-per-node 8 -m launcher train CONFIG         several ranks, started by torchrun,
  mpirun -n 8 swin-moe train CONFIG                            by MPI (pip install 'swin-moe[mpi]'),
  srun -n 8 swin-moe train CONFIG                              or by Slurm: no --nproc then

Any option of the configuration can be overridden: a.b=value. All options: launcher/schema.py. The run
directory holds config.yaml, metrics.jsonl, summary.json, tensorboard/ and checkpoints/. Exit status 2:
something that you can correct, said in one line.
"""


EVAL_HELP = """\
examples:
  swin-moe eval runs/demo_cpu --nproc 2
  swin-moe eval runs/demo_cpu                                  one process; the experts come together
  swin-moe eval runs/demo_cpu --checkpoint step-00000234 model.moe.eval_capacity_factor=1.25

Every image of the validation split exactly once, on any number of ranks.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parse(arguments)
    try:
        return int(args.run(args, arguments))
    except (ConfigError, DataError, LaunchError, CheckpointError, LayoutError, ModelError) as error:
        return _complain(error)


def _complain(error: ValueError) -> int:
    """Say what the user can correct, in one line and without a traceback."""
    sys.stderr.write(f"{type(error).__name__}: {error}\n")  # one write: the ranks share the terminal
    return EXIT_USER_ERROR


def _check(args: argparse.Namespace, _: list[str]) -> int:
    config = load_config(args.config, args.overrides)
    check(config, args.nproc)
    num_samples, found = _training_data(config.data.train)
    batch = config.train
    print(f"{args.config} is valid: {found}")
    print(f"  {steps_in(batch.duration, config, num_samples)} steps of {batch.global_batch_size} images")
    if args.nproc:
        accumulation = batch.global_batch_size // (args.nproc * batch.micro_batch_size)
        print(
            f"  {args.nproc} ranks x {accumulation} micro-batches of {batch.micro_batch_size}, "
            f"expert-parallel {config.parallel.ep_size}, ZeRO stage {config.parallel.zero_stage}"
        )
    if num_samples is None:
        print(statement(config.data.train))
    return 0


def _training_data(place: str) -> tuple[int | None, str]:
    """How many images data.train has, if that is known, and what to say of it."""
    if names_tars(place):
        return None, f"{len(expand(place))} tars without a manifest"
    manifest = checked_manifest(place)
    return manifest.samples, f"{manifest.samples} images of {len(manifest.classes)} classes"


def _train(args: argparse.Namespace, arguments: list[str]) -> int:
    pretrained = [f"train.pretrained={json.dumps(args.pretrained)}"] if args.pretrained else []
    config = load_config(args.config, [*args.overrides, *pretrained])
    if local.is_parent(args.nproc):
        check(config, args.nproc)
        run = RunDirectory(config.run_dir)
        run.lock(resume=args.resume == "auto")
        run.unlock()  # rank 0 will hold it
        return local.run_local(args.nproc, arguments)

    def train(ranks: Ranks, device: torch.device) -> None:
        from launcher.train import train  # DeepSpeed looks for its device when it is imported

        train(config, ranks, device, args.resume)

    return _as_rank(train)


def _eval(args: argparse.Namespace, arguments: list[str]) -> int:
    run = RunDirectory(args.run_directory)
    config = load_config(run.config, args.overrides)
    if local.is_parent(args.nproc):
        return local.run_local(args.nproc, arguments)

    def evaluate(ranks: Ranks, device: torch.device) -> None:
        from launcher.evaluate import evaluate_checkpoint

        evaluate_checkpoint(config, run, args.checkpoint, ranks, device)

    return _as_rank(evaluate)


def _as_rank(work: Callable[[Ranks, torch.device], None]) -> int:
    """Join the other ranks, work, and leave them; an error that all ranks share is said once."""
    local.die_with_agent()
    warnings.filterwarnings("ignore", module=r"torch\.distributed")  # of calls that DeepSpeed makes
    ranks = discover()
    device = prepare_process(ranks)
    join(ranks, device)
    try:
        work(ranks, device)
    except RankError as error:  # the other ranks are waiting in a collective: no good-byes
        _complain(error)
        sys.stderr.flush()
        os._exit(EXIT_USER_ERROR)
    except (ConfigError, DataError, CheckpointError, LayoutError, ModelError) as error:
        leave()
        return _complain(error) if ranks.rank == 0 else EXIT_USER_ERROR
    except RuntimeError as error:
        if "gloo/transport" not in str(error):  # torch has no type of its own for a lost connection
            raise
        time.sleep(PATIENCE_S)  # another rank is gone and said why
        return _complain(RankError(f"rank {ranks.rank} lost its connection to another rank"))
    leave()
    return 0


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
    parser = _teaching(argparse.ArgumentParser, prog="swin-moe", description=DESCRIPTION)
    commands = parser.add_subparsers(
        required=True, metavar="check | train | eval | shards | bench | models | convert | export"
    )
    check_parser = _teaching(commands.add_parser, "check", help="find everything that is wrong with a run")
    train_parser = _teaching(commands.add_parser, "train", help="train a model", epilog=TRAIN_HELP)
    eval_parser = _teaching(commands.add_parser, "eval", help="evaluate a run's checkpoint", epilog=EVAL_HELP)
    for command, run in ((check_parser, _check), (train_parser, _train), (eval_parser, _eval)):
        command.set_defaults(run=run)
        command.add_argument("--nproc", type=_positive, help="ranks to start on this machine")
    eval_parser.add_argument("run_directory", type=Path, metavar="RUN", help="the run directory")
    eval_parser.add_argument("--checkpoint", help="step-NNNNNNNN; default: the newest")
    for command in (check_parser, train_parser):
        command.add_argument(
            "config", type=Path, metavar="CONFIG", help="a YAML file, such as those in configs/"
        )
    for command in (check_parser, train_parser, eval_parser):
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
    shards.add_parser(commands)
    bench.add_parser(commands)
    models.add_parser(commands)
    convert.add_parsers(commands)
    return parser


def _teaching(make: Callable[..., Any], *names: str, **options: Any) -> argparse.ArgumentParser:
    """A parser whose texts keep their lines."""
    parser: argparse.ArgumentParser = make(
        *names, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 (got {text!r})")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
