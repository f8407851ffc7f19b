"""The arguments of `swin-moe preflight`."""

from pathlib import Path

from launcher.console.arguments import CommandParser

EPILOG = """\
examples:
  swin-moe preflight configs/demo_cpu.yaml --nproc 2           the machine and a run, before it starts
  swin-moe preflight --nproc 8 --megabytes 256                 the machine alone
  srun -n 16 swin-moe preflight CONFIG --json preflight.json   or torchrun, or mpirun

Versions, configuration, clocks, disks, shards, GPUs, speed, links, time-outs: on all ranks, with the ranks
and nodes that differ by name. `swin-moe train` does the same, with small messages, before its first step.
Exit status 2: something would fail or be wrong. docs/preflight.md says what each check means.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `preflight`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.preflight:run")
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="of a run: a YAML file, or the name of a recipe")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
    add("--nproc", type=int, help="ranks to start on this machine")
    add("--megabytes", type=float, metavar="MIB", help="of a message (default: 16, on GPUs 256)")
    add("--json", type=Path, metavar="FILE", help="write all values of all ranks there")
