"""`swin-moe shards pack`: options, a share of the work."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.pack.coco_json import FOLDER, write_coco_json
from data_shards.pack.plan import check_split
from data_shards.pack.sources.fashion_scenes import SCENES
from data_shards.pack.sources.registry import Source
from data_shards.pack.write import merge, pack, pack_task
from launcher.cli.shards_facts import split_facts
from launcher.cli.shards_source import make_source
from launcher.console.counts import counted
from launcher.console.progress import progress_line


def run_pack(args: argparse.Namespace, _: list[str]) -> int:
    """Pack every split asked for, or this task's share of each; returns the exit status."""
    if args.task == "merge":
        if not args.out.is_dir():
            raise DataError(f"--out {args.out}: no such directory; merge what tasks have written there")
        found = [path.name for path in args.out.iterdir() if path.is_dir() and path.name != FOLDER]
        splits = args.splits or sorted(found)
        args.answer = [_report(args.out / split, merge(args.out / split, args.max_bad)) for split in splits]
        return 0
    source = make_source(args)
    if args.name is not None:
        source = replace(source, name=_checked_name(args.name))
    splits = args.splits or list(source.splits)
    for split in splits:
        check_split(source, split)
    outs = {split: args.out / split for split in splits}
    args.answer = [_report(out, _pack_split(args, source, split, out)) for split, out in outs.items()]
    return 0


def _checked_name(name: str) -> str:
    """The name of a data set, which messages show in a line."""
    if not name.strip() or not name.isprintable():
        raise DataError(f"--name {name!r}: write a name of printable characters, such as imagenet-22k")
    return name.strip()


def _pack_split(args: argparse.Namespace, source: Source, split: str, out: Path) -> Manifest | None:
    names = (
        "samples_per_shard",
        "bytes_per_shard",
        "seed",
        "quality",
        "short_side",
        "baseline",
        "check",
        "max_bad",
        "image_sizes",
    )
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    options |= {"workers": args.workers, "progress": progress_line(str(out))}
    if args.task:
        return pack_task(source, split, out, args.task, **options)
    return pack(source, split, out, **options)


def _report(out: Path, manifest: Manifest | None) -> dict[str, Any]:
    """Say what was written, and return it."""
    if manifest is None:
        print(f"{out}: this task is done, others are not; the last one writes the manifest")
        return {"directory": out, "manifest": None}
    what = f"{manifest.samples} samples in {counted(len(manifest.shards), 'shard')}"
    if manifest.writer.source.startswith(SCENES):  # made up here, so that no other program has its JSON
        write_coco_json(out)
    print(f"{out}: {manifest.name}, {what}, manifest {manifest.digest[:12]}")
    if manifest.bad_sources:
        print(f"{out}: {manifest.bad_sources} damaged sources were left out, see {out}/bad_sources.tsv")
    return split_facts(out, manifest)
