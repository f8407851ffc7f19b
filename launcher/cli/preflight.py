"""`swin-moe preflight`: the checks of launcher/preflight/run.py by themselves, under any launcher."""

import argparse
import json

import torch

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import DataConfig, RunConfig
from launcher.process.local_launcher import is_parent, run_local
from launcher.process.run_rank import RankContext, run_rank
from launcher.validation.place_rules import check_output_file
from parallel.ranks.rank import Ranks
from swin_moe.config import ModelConfig

MEGABYTES = {"cpu": 16.0, "cuda": 256.0}


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
