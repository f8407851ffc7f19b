"""`swin-moe shards info`: samples, bytes, sizes and classes of shards."""

import argparse
from pathlib import Path

from data_shards.format.index import MANIFEST_NAME
from data_shards.verify.info import info


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `shards info`: the exit status."""
    for split in splits_in(args.directory):
        summary = info(split)
        first, *rest = summary.lines(args.classes)
        print(f"{split}: {summary.manifest.name}/{summary.manifest.split}: {first}")
        for text in rest:
            print(f"  {text}")
    return 0


def splits_in(directory: Path) -> list[Path]:
    """`directory` itself if it is a split or holds none, otherwise the splits in it."""
    if (directory / MANIFEST_NAME).is_file():
        return [directory]
    return sorted(path.parent for path in directory.glob(f"*/{MANIFEST_NAME}")) or [directory]
