"""`swin-moe shards pack`: a source, options, a share of the work."""

import argparse
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.pack.plan import check_split
from data_shards.pack.sources.fashion_mnist import PACKAGE, TIMEOUT_S, is_present
from data_shards.pack.sources.registry import SOURCES, Source, find_source
from data_shards.pack.write import merge, pack, pack_task
from launcher.cli.shards_members import folders
from launcher.console.counts import counted
from launcher.console.progress import progress_line
from swin_moe.text_files import read_text

logger = logging.getLogger(__name__)

OF_CLASSES = ("folder", "imagenet-zip", "imagenet22k")  # the sources that --allow-empty is for


def make_source(args: argparse.Namespace) -> Source:
    """The source that the arguments name; its notes go to stderr."""
    if args.source is None:
        raise DataError(f"--source is needed; one of {', '.join(sorted(SOURCES))}")
    if args.source != "members" and (args.member or args.classes):
        raise DataError("--member and --classes are for --source members; leave them out")
    if args.source == "synthetic":
        sizes = args.synthetic_train, args.synthetic_val, args.synthetic_classes, args.synthetic_size
        return SOURCES["synthetic"](*sizes, seed=getattr(args, "seed", 0))
    options: dict[str, Any] = {}
    if args.source in OF_CLASSES:
        options["allow_empty"] = args.allow_empty
    if args.source == "folder":
        options["splits"] = getattr(args, "splits", None)
    if args.source == "members":
        options = {"members": folders(args.member), "splits": getattr(args, "splits", None)}
        options["classes"] = read_classes(args.classes) if args.classes else ()
    if args.source == "fashion-mnist" and args.directory is None and not is_present():
        install_fashion_mnist()
    make = find_source(args.source)
    if args.source not in SOURCES and args.directory is None:
        raise DataError(f"--source {args.source} needs --directory, which its function is called with")
    source = make(args.directory, **options)
    for note in source.notes:
        logger.warning("%s", note)
    return source


def read_classes(path: Path) -> list[str]:
    """The names of classes in a text file, one a line; empty lines do not count."""
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--classes {path}: cannot read it ({error})") from error


def install_fashion_mnist() -> None:
    """Try `apt-get install` of the Debian package, as root only; without it the source downloads."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    timeout = f"Acquire::http::Timeout={TIMEOUT_S}"
    command = ["apt-get", "install", "-y", "--no-install-recommends", "-o", timeout, PACKAGE]
    logger.info("Fashion-MNIST is not on this machine; running: %s", " ".join(command))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15 * TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        logger.warning("apt-get failed: %s", reason)


def run_pack(args: argparse.Namespace, _: list[str]) -> int:
    """Pack every split asked for, or this task's share of each; returns the exit status."""
    if args.task == "merge":
        if not args.out.is_dir():
            raise DataError(f"--out {args.out}: no such directory; merge what tasks have written there")
        splits = args.splits or sorted(path.name for path in args.out.iterdir() if path.is_dir())
        for split in splits:
            _report(args.out / split, merge(args.out / split, args.max_bad))
        return 0
    source = make_source(args)
    splits = args.splits or list(source.splits)
    for split in splits:
        check_split(source, split)
    for split in splits:
        out = args.out / split
        _report(out, _pack_split(args, source, split, out))
    return 0


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


def _report(out: Path, manifest: Manifest | None) -> None:
    if manifest is None:
        print(f"{out}: this task is done, others are not; the last one writes the manifest")
        return
    what = f"{manifest.samples} samples in {counted(len(manifest.shards), 'shard')}"
    print(f"{out}: {manifest.name}, {what}, manifest {manifest.digest[:12]}")
    if manifest.bad_sources:
        print(f"{out}: {manifest.bad_sources} damaged sources were left out, see {out}/bad_sources.tsv")
