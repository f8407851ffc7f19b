"""The arguments of the commands of `swin-moe slurm`."""

import argparse
from pathlib import Path
from typing import TypeAlias

from launcher.console.arguments import CommandParser, add_command, add_json, positive

SUBMIT_HELP = """\
examples:
  swin-moe slurm submit configs/demo_cpu.yaml --nodes 2 --ranks-per-node 2 --time 2:00:00 --dry-run
  swin-moe slurm submit CONFIG --nodes 4 --gpus-per-node 8 --time 24:00:00 run_dir=runs/a optim.base_lr=1e-3
  swin-moe slurm submit CONFIG --nodes 2-8 --elastic --gpus-per-node 8      whatever is free of 2 to 8 nodes
  swin-moe slurm submit CONFIG --nodes 1 --array sweep.txt --array-limit 4  a run for each line of overrides

Everything is checked here first: a configuration, shards or layout that cannot train never reach the queue.
The script, its environment and the configuration that the job trains go to RUN/slurm. What is the same for
every job (partition, modules, container) stands in ~/.config/swin-moe/site.yaml or $SWIN_MOE_SITE:
docs/slurm.md.
"""
STATUS_HELP = """\
examples:
  swin-moe slurm status runs/a
  swin-moe slurm status runs/a --json
"""
LOGS_HELP = """\
examples:
  swin-moe slurm logs runs/a --follow
  swin-moe slurm logs runs/sweep --task 3 --lines 200
"""
CANCEL_HELP = """\
examples:
  swin-moe slurm cancel runs/a          a running job finishes its step, saves and is not requeued
  swin-moe slurm cancel runs/a --now    at once: what was trained since the last checkpoint is lost
"""
RESUME_HELP = """\
examples:
  swin-moe slurm resume runs/a                          as it was submitted
  swin-moe slurm resume runs/a --nodes 2 --time 8:00:00
  swin-moe slurm resume runs/sweep                      of an array, only the tasks that are not finished
"""
DRY_RUN = "print the script; write and submit nothing"
Options: TypeAlias = "argparse.ArgumentParser | argparse._ArgumentGroup"


def add_arguments(parser: CommandParser) -> None:
    """Add the commands of `slurm`."""
    names = "submit | status | list | logs | cancel | resume"
    commands = parser.add_subparsers(required=True, metavar=names)
    add_command(commands, "submit", "check a run and queue it", _add_submit)
    add_command(commands, "status", "how a job and its run stand", _add_status)
    add_command(commands, "logs", "what a run prints", _add_logs)
    add_command(commands, "cancel", "stop a run, saved", _add_cancel)
    add_command(commands, "resume", "queue a run again", _add_resume)
    add_command(commands, "list", "every submitted run below a directory", _add_list)


def _add_submit(parser: CommandParser) -> None:
    parser.epilog = SUBMIT_HELP
    parser.set_defaults(run="launcher.slurm.submit:submit")
    add_json(parser)
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
    add(
        "--array",
        type=Path,
        metavar="FILE|'a=1,2 b=3,4'",
        help="overrides, a task a line or an item of a YAML list; or a grid: every value with every other",
    )
    add("--job-name", metavar="NAME", help="default: the name of the run directory")
    add_resources(parser)
    add("--dry-run", action="store_true", help=DRY_RUN)


def _add_status(parser: CommandParser) -> None:
    parser.epilog = STATUS_HELP
    parser.set_defaults(run="launcher.slurm.jobs:show_status")
    _add_run(parser)
    add_json(parser)


def _add_logs(parser: CommandParser) -> None:
    parser.epilog = LOGS_HELP
    parser.set_defaults(run="launcher.slurm.jobs:show_log")
    _add_run(parser)
    add = parser.add_argument
    add("--follow", action="store_true", help="go on until the job has left the queue")
    add("--lines", type=positive, default=50, metavar="N", help="from the end (default %(default)s)")
    add("--task", type=int, metavar="I", help="of an array")


def _add_cancel(parser: CommandParser) -> None:
    parser.epilog = CANCEL_HELP
    parser.set_defaults(run="launcher.slurm.jobs:cancel")
    add_json(parser)
    _add_run(parser)
    parser.add_argument("--now", action="store_true", help="do not wait for a save")


def _add_resume(parser: CommandParser) -> None:
    parser.epilog = RESUME_HELP
    parser.set_defaults(run="launcher.slurm.submit:resume")
    add_json(parser)
    _add_run(parser)
    add_resources(parser)
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)


def _add_list(parser: CommandParser) -> None:
    parser.set_defaults(run="launcher.slurm.jobs:show_list")
    add_json(parser)
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s"
    )


def _add_run(parser: CommandParser) -> None:
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="the run directory")


def add_resources(parser: Options) -> None:
    """Options of `submit`, `resume` and `study run --slurm`.

    None is what the site's file, or the last submission, says.
    """
    add = parser.add_argument
    add(
        "--nodes",
        metavar="N|N-M",
        help="nodes, or with --elastic a range, of which those are taken that are free (default: 1)",
    )
    add(
        "--elastic",
        action="store_const",
        const=True,
        help="fit the layout to the ranks that there are; see `train --elastic`",
    )
    add("--gpus-per-node", type=int, metavar="N", help="default: the site's, or none")
    add("--ranks-per-node", type=positive, metavar="N", help="default: one a GPU, or one without GPUs")
    add("--cpus-per-rank", type=positive, metavar="N")
    for name in ("mem", "partition", "account", "qos", "time", "constraint", "exclude", "dependency"):
        add(f"--{name}", metavar=name.upper(), help="as sbatch has it")
    add(
        "--sbatch",
        action="append",
        metavar="--FLAG=VALUE",
        help="a further option of sbatch, such as --sbatch=--gres=tmpdisk:100; may be repeated",
    )
    add("--container", metavar="IMAGE", help="the image in which the ranks run")
    add("--array-limit", type=positive, metavar="K", help="tasks of an array that run at a time")
    add("--requeue-limit", type=int, metavar="N", help="back into the queue so often by itself")
    add("--allow-change", action="store_const", const=True, help="as in train")
