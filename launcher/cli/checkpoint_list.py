"""`swin-moe checkpoint ls`: the checkpoints of a run. No torch, unless their files are read."""

import argparse
import json
from dataclasses import asdict

from launcher.checkpoints.file_errors import file_errors
from launcher.checkpoints.list import directory_of, rows


@file_errors()
def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `checkpoint ls`: the exit status."""
    entries = rows(directory_of(args.run_directory), deep=args.verify)
    if args.json:
        print(json.dumps([asdict(row) for row in entries], indent=1))
    else:
        print("\n".join(map(str, entries)))
    return 0
