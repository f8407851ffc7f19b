"""`swin-moe checkpoint ls`: the checkpoints of a run. No torch, unless their files are read."""

import argparse
from pathlib import Path

from launcher.checkpoints.file_errors import file_errors
from launcher.checkpoints.list import Row, directory_of, rows


@file_errors()
def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `checkpoint ls`: the exit status."""
    directory = directory_of(args.run_directory)
    args.answer = _verified(directory) if args.verify else rows(directory)
    print("\n".join(map(str, args.answer)))
    return 0


def _verified(directory: Path) -> list[Row]:
    from parallel.checkpoint.verify import problems  # imports torch

    return rows(directory, problems)
