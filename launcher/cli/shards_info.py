"""`swin-moe shards info`: samples, bytes, sizes and classes of shards."""

import argparse
from pathlib import Path

from data_shards.format.index import MANIFEST_NAME
from data_shards.verify.info import info
from launcher.cli.shards_facts import split_facts


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `shards info`: the exit status."""
    args.answer = []
    for split in splits_in(args.directory):
        summary = info(split)
        facts, counts = split_facts(split, summary.manifest), summary.samples_per_class.tolist()
        classes = {"classes": summary.manifest.classes, "samples_per_class": counts}
        args.answer.append({**facts, "bytes": summary.bytes, **classes})
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
