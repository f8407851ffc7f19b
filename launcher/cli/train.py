"""`swin-moe train`: a rank of a run, or the parent of its ranks."""

import argparse
import json

from launcher.config.load import load_config
from launcher.config.schema import RunConfig


def run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Carry out `train`, as a rank or as the parent of some: the exit status."""
    pretrained = [f"train.pretrained={json.dumps(args.pretrained)}"] if args.pretrained else []
    config = load_config(args.config, [*args.overrides, *pretrained, *args.match_classes])
    from launcher.process.local_launcher import is_parent  # imports torch

    if is_parent(args.nproc):
        return _parent(config, args, arguments)
    from launcher.scripting import train

    return train(
        config,
        resume=args.resume == "auto",
        allow_change=args.allow_change,
        reset_crashes=args.reset_crashes,
        elastic=args.elastic,
        runtime=args.runtime,
    )


def _parent(config: RunConfig, args: argparse.Namespace, arguments: list[str]) -> int:
    """Check the run and start its ranks: the exit status of the one that caused the end."""
    from launcher.process.local_launcher import run_local
    from launcher.rundir.directory import RunDirectory
    from launcher.rundir.sessions import Sessions
    from launcher.validation.elastic import replan
    from launcher.validation.resume import check_resume
    from launcher.validation.rules import check

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
