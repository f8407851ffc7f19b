"""`swin-moe preflight`: the checks of launcher/preflight/run.py by themselves, under any launcher."""

import argparse
import json
from pathlib import Path

import torch

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import DataConfig, RunConfig
from launcher.console.arguments import Commands, add_command
from launcher.process.local_launcher import is_parent, run_local
from launcher.process.run_rank import RankContext, run_rank
from launcher.validation.place_rules import check_output_file
from parallel.ranks.rank import Ranks
from swin_moe.config import ModelConfig

HELP = """\
examples:
  swin-moe preflight configs/demo_cpu.yaml --nproc 2           the machine and a run, before it starts
  swin-moe preflight --nproc 8 --megabytes 256                 the machine alone
  srun -n 16 swin-moe preflight CONFIG --json preflight.json   or torchrun, or mpirun

Versions, configuration, clocks, disks, shards, GPUs, speed, links, time-outs: on all ranks, with the ranks
and nodes that differ by name. `swin-moe train` does the same, with small messages, before its first step.
Exit status 2: something would fail or be wrong. docs/preflight.md says what each check means.
"""
MEGABYTES = {"cpu": 16.0, "cuda": 256.0}


def add_parser(subparsers: Commands) -> None:
    """Add `preflight` to the launcher's `subparsers`."""
    text = "check all ranks, nodes and links"
    parser = add_command(subparsers, "preflight", text, HELP)
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="of a run: a YAML file, or the name of a recipe")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
    add("--nproc", type=int, help="ranks to start on this machine")
    add("--megabytes", type=float, metavar="MIB", help="of a message (default: 16, on GPUs 256)")
    add("--json", type=Path, metavar="FILE", help="write all values of all ranks there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Carry out `preflight`: the exit status."""
    for option, value in (("--nproc", args.nproc), ("--megabytes", args.megabytes)):
        if value is not None and value <= 0:
            raise ConfigError(f"{option} ({value}) must be above 0")
    if args.json:
        check_output_file("--json", args.json)
    config = load_config(args.config, args.overrides) if args.config else None
    if is_parent(args.nproc):
        return run_local(args.nproc, arguments)

    def work(ranks: Ranks, device: torch.device, context: RankContext) -> None:
        _report(args, config, ranks, device)

    return run_rank(config or no_run(), work, args.runtime)


def no_run() -> RunConfig:
    """The time-outs and sizes of a run that there is not."""
    return RunConfig(run_dir="", model=ModelConfig(), data=DataConfig(train="", val=""))


def _report(args: argparse.Namespace, config: RunConfig | None, ranks: Ranks, device: torch.device) -> None:
    from launcher.preflight.run import PreflightError, as_json, joined, preflight, render

    megabytes = args.megabytes or MEGABYTES[device.type]
    report = preflight(config, ranks, device, message_bytes=int(megabytes * 2**20))
    if ranks.rank == 0:
        print(render(report), flush=True)
        if args.json:
            args.json.write_text(json.dumps(as_json(report), indent=1) + "\n")
    if report.failures:
        raise PreflightError(joined(report.failures))
