"""`swin-moe shards verify`: read shards back and name every bad sample."""

import argparse
from dataclasses import asdict

from data_shards.errors import DataError
from data_shards.verify.verify import verify
from launcher.cli.shards_info import splits_in
from launcher.console.counts import counted
from launcher.console.progress import progress_line


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `shards verify`: the exit status, 1 when damage was found."""
    if args.workers < 1:
        raise DataError(f"--workers ({args.workers}) must be at least 1")
    bad, found = 0, []
    for split in splits_in(args.directory):
        report = verify(split, decode=args.decode, workers=args.workers, progress=progress_line(str(split)))
        for shard, key, reason in report.bad:
            print(f"{split / shard}: {key}: {reason}")
        bad += len(report.bad)
        names = ("shard", "key", "reason")
        problems = [dict(zip(names, one, strict=True)) for one in report.bad]
        found.append({"directory": split, **asdict(report), "intact": report.ok, "bad": problems})
        verdict = "nothing damaged" if report.ok else counted(len(report.bad), "problem")
        what = f"{report.samples} samples in {counted(report.shards, 'shard')}, {report.bytes} bytes"
        print(f"{split}: {what}: {verdict}")
    args.answer = {"intact": not bad, "splits": found}
    return 1 if bad else 0
