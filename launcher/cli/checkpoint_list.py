"""`swin-moe checkpoint ls`: the checkpoints of a run. No torch, unless their files are read."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from launcher.checkpoints.file_errors import file_errors
from launcher.checkpoints.list import Row, directory_of, rows


@file_errors()
def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `checkpoint ls`: the exit status."""
    directory = directory_of(args.run_directory)
    entries = _verified(directory) if args.verify else rows(directory)
    if args.json:
        print(json.dumps([asdict(row) for row in entries], indent=1))
    else:
        print("\n".join(map(str, entries)))
    return 0


def _verified(directory: Path) -> list[Row]:
    from parallel.checkpoint.verify import problems  # imports torch

    return rows(directory, problems)
