"""The arguments of `swin-moe shards pack`, and what they mean: a source, options, a share of the work."""

import argparse
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.pack.plan import SAMPLES_PER_SHARD, check_split
from data_shards.pack.reencode import CHECKS
from data_shards.pack.sources.fashion_mnist import PACKAGE, TIMEOUT_S, is_present
from data_shards.pack.sources.registry import SOURCES, Source, find_source
from data_shards.pack.write import merge, pack, pack_task
from launcher.cli.shards_members import MEMBER_HELP, add_member, folders
from launcher.console.counts import counted
from launcher.console.progress import progress_line
from swin_moe.text_files import read_text

logger = logging.getLogger(__name__)

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
OF_CLASSES = ("folder", "imagenet-zip", "imagenet22k")  # the sources that --allow-empty is for
PACK_HELP = (
    """\
examples:
  swin-moe shards pack --source fashion-mnist --out data/fashion-mnist --workers 2
  swin-moe shards pack --source folder --directory imagenet --out data/in1k --bytes-per-shard 100MB
  swin-moe shards pack --source imagenet-zip --directory ImageNet-Zip --out data/in1k --workers 16
  swin-moe shards pack --source imagenet22k --directory in22k --out data/in22k --short-side 256 --quality 90
  swin-moe shards pack --source shards --directory theirs --out data/theirs   shuffles tars made by others
  swin-moe shards pack --source members --directory ade20k --out data/ade20k --image-sizes \
      --member image=images --member mask=annotations:label_image --classes names.txt
  swin-moe shards pack --source synthetic --synthetic-train 4096 --out data/synthetic
in a Slurm array (#SBATCH --array=0-63), the last task to end writes the manifest:
  swin-moe shards pack ... --task $SLURM_ARRAY_TASK_ID/64 --workers $SLURM_CPUS_PER_TASK
  swin-moe shards pack --out data/in22k --task merge           if it was killed just then

sources, each below --directory:
  folder         SPLIT/CLASS/**/*.jpg (.jpeg .png ...), SPLIT among train val test, or another common name
  imagenet-zip   train.zip, train_map.txt (PATH, tab, label), val.zip, val_map.txt; read without unpacking
  imagenet22k    fall11_whole/ and ILSVRC2011fall_whole_map_{train,val}.txt (a JSON list of [path, label])
  members        a folder a member: SPLIT/FOLDER/**/STEM.ext or FOLDER/SPLIT/**/STEM.ext, paired by the stems
  shards         splits with a manifest.json, packed or indexed
  fashion-mnist  its four idx-ubyte files; without --directory they are looked for, installed or downloaded
  synthetic      made up

Writes OUT/SPLIT: plain WebDataset tars (000000.tar ...), one index each (000000.idx) and, last,
manifest.json. The samples are shuffled once over the whole split. The bytes depend on the source and on the
options, not on --workers or --task. Damaged sources are left out and listed in OUT/SPLIT/bad_sources.tsv.
Hidden files and links to what is listed already are skipped and counted.
Interrupted, or stopped by damaged sources? Repair or delete those and run the same command again: finished
shards are verified and kept.

"""
    + MEMBER_HELP
)


def add_source(parser: argparse.ArgumentParser, required: bool) -> None:
    """The arguments that name a source."""
    add = parser.add_argument
    text = f"where the images come from: {', '.join(sorted(SOURCES))}, or MODULE:FUNCTION of your own"
    add("--source", required=required, metavar="SOURCE", help=text)
    add("--directory", type=Path, help="where the source lies")
    text = "keep classes without images as classes (default: refuse them)"
    add("--allow-empty", action="store_true", help=text)
    add_member(parser, "FOLDER")
    add("--classes", type=Path, help="of --source members: a file with a class name a line")
    add("--synthetic-train", type=int, default=4096, help="made-up training samples (default %(default)s)")
    add("--synthetic-val", type=int, default=1024, help="made-up validation samples (default %(default)s)")
    add("--synthetic-classes", type=int, default=10, help="made-up classes (default %(default)s)")
    add("--synthetic-size", type=int, default=32, help="their side in pixels (default %(default)s)")


def add_pack(parser: argparse.ArgumentParser) -> None:
    """All arguments of `pack`."""
    add = parser.add_argument
    add("--out", required=True, type=Path, help="the splits become directories in it")
    add("--splits", nargs="+", help="default: all that the source has")
    size = parser.add_mutually_exclusive_group()
    text = "limit of a tar, reckoned by the sizes of the sources: 100MB, 64MiB"
    size.add_argument("--bytes-per-shard", type=parse_bytes, help=text)
    size.add_argument(
        "--samples-per-shard", type=int, help=f"default {SAMPLES_PER_SHARD}; aim at 100 MB a shard"
    )
    add("--seed", type=int, default=0, help="of the shuffle and of synthetic images (default %(default)s)")
    text = "re-encode images whose short side is longer, to this many pixels (JPEG 4:2:0 at --quality)"
    add("--short-side", type=int, default=0, help=text)
    add("--quality", type=int, default=95, help="JPEG quality of what is encoded here (default %(default)s)")
    add("--baseline", action="store_true", help="progressive JPEGs to baseline without loss, by jpegtran")
    text = "how a source is found damaged: all its pixels, its header, not at all (default %(default)s)"
    add("--check", choices=CHECKS, default="decode", help=text)
    text = "give up when a larger share of the sources, and more than 10, is damaged (default %(default)s)"
    add("--max-bad", type=float, default=0.001, help=text)
    text = "record height and width of the image in the index, for tasks that group by size"
    add("--image-sizes", action="store_true", help=text)
    add("--workers", type=int, default=1, help="processes (default %(default)s)")
    add("--task", type=parse_task, help="i/n: write the i-th of n shares (from 0); merge: only the manifest")
    add_source(parser, required=False)


def parse_bytes(text: str) -> int:
    """Bytes from 100MB, 64MiB or 100000000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b)?", text.strip().lower())
    if not match or (match[2] or "").upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 100MB, 64MiB or a number of bytes")
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])


def parse_task(text: str) -> str | tuple[int, int]:
    """(i, n) of "i/n", or "merge"."""
    if text == "merge":
        return text
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is neither merge nor i/n with i in 0 ... n - 1")
    return int(match[1]), int(match[2])


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


def run_pack(args: argparse.Namespace) -> int:
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
