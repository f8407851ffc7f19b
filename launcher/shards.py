"""`swin-moe shards pack | verify | info`: make the shards of a data set, read them back, count them."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from data_shards.errors import DataError
from data_shards.index import MANIFEST_NAME
from data_shards.sources import SOURCES, Source
from data_shards.verify import info, verify
from data_shards.write import pack

PACK_HELP = """\
examples:
  swin-moe shards pack --source fashion-mnist --out data/fashion-mnist --workers 2
  swin-moe shards pack --source fashion-mnist --directory ~/idx-files --out data/fashion-mnist
  swin-moe shards pack --source synthetic --synthetic-train 4096 --out data/synthetic

Writes OUT/train and OUT/val: plain WebDataset tars (000000.tar ...), one index each (000000.idx) and, last,
manifest.json. The samples are shuffled once over the whole split. The bytes depend on the source, --seed,
--quality and --samples-per-shard only, not on --workers. Interrupted? Run the same command again: finished
shards are verified and kept. Without --directory, Fashion-MNIST is taken from the Debian package
dataset-fashion-mnist if it is installed; otherwise the command installs or downloads it, and says so.
"""
VERIFY_HELP = """\
examples:
  swin-moe shards verify data/fashion-mnist              every digest, tar header, label and checksum
  swin-moe shards verify data/fashion-mnist/val --decode the pixels too

Exit status 1 when anything is wrong; each line names a shard, a key ("*": the whole file) and the reason.
To mend a shard: delete its .tar and run the same `shards pack` again.
"""
INFO_HELP = """\
example:
  swin-moe shards info data/fashion-mnist
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `shards` with its three commands to the launcher's `subparsers`."""
    shards = subparsers.add_parser("shards", help="make, verify and count shards of images")
    shards.set_defaults(run=run)
    commands = shards.add_subparsers(dest="shards_command", required=True, metavar="pack | verify | info")
    _add_pack(_command(commands, "pack", "write a data set as shards", PACK_HELP))
    check = _command(commands, "verify", "read shards back and name every bad sample", VERIFY_HELP)
    check.add_argument("directory", type=Path, help="a split, or the directory that holds the splits")
    check.add_argument("--decode", action="store_true", help="decode every image as well")
    check.add_argument("--workers", type=int, default=1, help="threads (default %(default)s)")
    count = _command(commands, "info", "count samples, bytes and classes", INFO_HELP)
    count.add_argument("directory", type=Path, help="a split, or the directory that holds the splits")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, epilog: str
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=raw)


def _add_pack(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", required=True, choices=sorted(SOURCES), help="where the images come from")
    add("--directory", type=Path, help="fashion-mnist: the directory of its four idx-ubyte files")
    add("--out", required=True, type=Path, help="the splits become directories in it")
    add("--splits", nargs="+", default=["train", "val"], help="default: train val")
    add("--samples-per-shard", type=int, default=1000, help="default %(default)s; aim at 100 MB a shard")
    add("--seed", type=int, default=0, help="of the shuffle and of synthetic images (default %(default)s)")
    add("--quality", type=int, default=95, help="JPEG quality of images not yet JPEG (default %(default)s)")
    add("--workers", type=int, default=1, help="processes (default %(default)s)")
    add("--synthetic-train", type=int, default=4096, help="made-up training samples (default %(default)s)")
    add("--synthetic-val", type=int, default=1024, help="made-up validation samples (default %(default)s)")
    add("--synthetic-classes", type=int, default=10, help="made-up classes (default %(default)s)")
    add("--synthetic-size", type=int, default=32, help="their side in pixels (default %(default)s)")


def run(args: argparse.Namespace, _: list[str] | None = None) -> int:
    """Carry out a parsed `shards` command: the exit status, 1 when verify found damage; or DataError."""
    commands = {"pack": _run_pack, "verify": _run_verify, "info": _run_info}
    return commands[args.shards_command](args)


def _run_pack(args: argparse.Namespace) -> int:
    source = _source(args)
    for split in args.splits:
        out = args.out / split
        manifest = pack(
            source,
            split,
            out,
            samples_per_shard=args.samples_per_shard,
            seed=args.seed,
            quality=args.quality,
            workers=args.workers,
            progress=progress_line(str(out)),
        )
        what = f"{manifest.samples} samples in {len(manifest.shards)} shards"
        print(f"{out}: {manifest.name}, {what}, manifest {manifest.digest[:12]}")
    return 0


def _source(args: argparse.Namespace) -> Source:
    if args.source == "synthetic":
        sizes = args.synthetic_train, args.synthetic_val, args.synthetic_classes, args.synthetic_size
        return SOURCES["synthetic"](*sizes, seed=args.seed)
    return SOURCES[args.source](args.directory)


def progress_line(name: str) -> Callable[[int, int], None]:
    """A `progress(done, total)` that writes samples, samples a second and seconds left to stderr.

    One line that is rewritten on a terminal; a line every ten seconds in a log.
    """
    began = shown = time.perf_counter()
    interval_s, end = (0.2, "\r") if sys.stderr.isatty() else (10.0, "\n")

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        if done < total and now - shown < interval_s:
            return
        shown, rate = now, done / max(now - began, 1e-6)
        text = f"{name}: {done}/{total} samples, {rate:.0f} a second, {(total - done) / rate:.0f} s left "
        print(text, end="\n" if done == total else end, file=sys.stderr, flush=True)

    return show


def splits_in(directory: Path) -> list[Path]:
    """`directory` itself if it is a split or holds none, otherwise the splits in it."""
    if (directory / MANIFEST_NAME).is_file():
        return [directory]
    return sorted(path.parent for path in directory.glob(f"*/{MANIFEST_NAME}")) or [directory]


def _run_verify(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise DataError(f"--workers ({args.workers}) must be at least 1")
    bad = 0
    for split in splits_in(args.directory):
        report = verify(split, decode=args.decode, workers=args.workers, progress=progress_line(str(split)))
        for shard, key, reason in report.bad:
            print(f"{split / shard}: {key}: {reason}")
        bad += len(report.bad)
        verdict = "all sound" if report.ok else f"{len(report.bad)} problems"
        print(f"{split}: {report.samples} samples in {report.shards} shards, {report.bytes} bytes: {verdict}")
    return 1 if bad else 0


def _run_info(args: argparse.Namespace) -> int:
    for split in splits_in(args.directory):
        found = info(split)
        manifest = found.manifest
        size = f"{manifest.samples} samples, {len(manifest.shards)} shards, {found.bytes / 2**20:.1f} MiB"
        print(f"{split}: {manifest.name}/{manifest.split}: {size}")
        print(f"  source {manifest.writer.source}; seed {manifest.writer.seed}; manifest {manifest.digest}")
        for name, count in zip(manifest.classes, found.samples_per_class.tolist(), strict=True):
            print(f"  {count:8d}  {name}")
    return 0
