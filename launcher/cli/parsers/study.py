"""The arguments of the commands of `swin-moe study`."""

from pathlib import Path

from launcher.cli.parsers.slurm import add_resources
from launcher.console.arguments import CommandParser, add_command, add_json, positive

RUN_HELP = """\
examples:
  swin-moe study run configs/studies/fashion_capacity.yaml --dry-run     the trials, their cost, what is wrong
  swin-moe study run configs/studies/fashion_capacity.yaml               all trials, one after the other
  swin-moe study run FILE.yaml --only 'capacity_factor=0.5,*' --jobs 2
  swin-moe study run FILE.yaml --slurm --nodes 4 --gpus-per-node 8 --time 24:00:00

Every trial is a run directory of its own, STUDY_DIR/cells/NAME: trained, then evaluated. The same command
again continues: finished trials are not run again, failed ones are. Exit status: 0 when all are finished, 75
when stopped on request, else that of the first trial that failed. FILE.yaml and all options: docs/studies.md.
"""
STATUS_HELP = """\
examples:
  swin-moe study status runs/fashion_capacity
  swin-moe study status configs/studies/fashion_capacity.yaml --json
"""
REPORT_HELP = """\
examples:
  swin-moe study report runs/fashion_capacity
  swin-moe study report runs/fashion_capacity --out fashion_report

Writes index.html, a self-contained page, every chart as PNG, and cells.csv, sweep.csv, layers.csv,
pareto.csv, published.csv and fits.csv. Trials that are not finished are listed with the reason; the report
covers the others. docs/studies_report.md says how to read it.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the commands of `study`."""
    commands = parser.add_subparsers(required=True, metavar="run | status | report")
    add_command(commands, "run", "train and evaluate what is not finished", _add_run)
    add_command(commands, "status", "how every trial stands", _add_status)
    add_command(commands, "report", "write it as HTML, CSV and PNG", _add_report)


def _add_run(parser: CommandParser) -> None:
    parser.epilog = RUN_HELP
    parser.set_defaults(run="launcher.study.run.scheduler:run_study")
    add_json(parser)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.yaml", help="a study, such as those in configs/studies/")
    add("--nproc", type=positive, metavar="N", help="ranks of a trial (default: the file's, or 1)")
    add("--jobs", type=positive, metavar="J", help="trials at a time (default: the file's, or 1)")
    add("--only", action="append", metavar="NAME", help="this trial alone, or those of a pattern with *")
    add("--skip-failed", action="store_true", help="leave out the trials that failed before")
    add("--reset-crashes", action="store_true", help="as in train: forget the crashes of trials so far")
    _add_slurm(parser)
    add("--dry-run", action="store_true", help="check all, tell the cost, and write and start nothing")


def _add_slurm(parser: CommandParser) -> None:
    about = "these options go with --slurm: see swin-moe slurm submit --help"
    group = parser.add_argument_group("on Slurm", about)
    group.add_argument("--slurm", action="store_true", help="submit the trials as one job array")
    group.add_argument("--job-name", metavar="NAME", help="default: the name of the study")
    add_resources(group)


def _add_status(parser: CommandParser) -> None:
    parser.epilog = STATUS_HELP
    parser.set_defaults(run="launcher.study.run.status:show_status")
    parser.add_argument("study", type=Path, metavar="STUDY_DIR|FILE.yaml")
    add_json(parser)


def _add_report(parser: CommandParser) -> None:
    parser.epilog = REPORT_HELP
    parser.set_defaults(run="launcher.study.report.report:run")
    add_json(parser)
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY_DIR|FILE.yaml", help="a study, or its file")
    add("--out", type=Path, metavar="DIR", help="where to write; default: STUDY_DIR/report")
