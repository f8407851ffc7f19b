"""`swin-moe shards pack | index | verify | repair | split | info`: make, verify and repair shards."""

import argparse
from pathlib import Path

from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL
from data_shards.format.index import MANIFEST_NAME
from data_shards.pack.indexing import GUARANTEES, IndexOptions, index_tars
from data_shards.pack.progress import BAD_NAME
from data_shards.pack.reencode import CHECKS
from data_shards.pack.split import split_off
from data_shards.verify.info import info
from data_shards.verify.repair import repair
from data_shards.verify.verify import verify
from launcher.cli.shards_members import MEMBER_HELP, add_member, extensions
from launcher.cli.shards_pack import PACK_HELP, add_pack, add_source, make_source, read_classes, run_pack
from launcher.console.arguments import Commands, add_command
from launcher.console.counts import counted
from launcher.console.progress import progress_line

VERIFY_HELP = """\
examples:
  swin-moe shards verify data/fashion-mnist              every digest, tar header, label and checksum
  swin-moe shards verify data/fashion-mnist/val --decode the pixels too

Exit status 1 when anything is wrong; each line names a shard, a key ("*": the whole file) and the reason.
To repair it: swin-moe shards repair
"""
INDEX_HELP = (
    """\
examples:
  swin-moe shards index /data/theirs --workers 8                    manifest and indices beside the tars
  swin-moe shards index /read-only/theirs --out data/theirs/train   elsewhere, with links to the tars
  swin-moe shards index /data/seg --member image=jpg --member mask=seg.png:label_image    other members

Reads *.tar of DIRECTORY and rewrites none. Each sample is KEY.jpg (.png, .webp ...) with KEY.cls, .json or
.txt that holds a whole number from 0 or a class name; KEY ends at the first dot. Keys with one part only, or
undecodable, are left out and listed in bad_sources.tsv. Hidden members are skipped and counted. A tar whose
structure is damaged is refused, and so is a label that is negative, not whole or not finite.

"""
    + MEMBER_HELP
)
REPAIR_HELP = """\
examples:
  swin-moe shards repair data/in1k/train --source imagenet-zip --directory ImageNet-Zip   byte for byte
  swin-moe shards repair data/in1k/train --drop-to data/in1k-repaired/train               without what is lost

Damaged indices are made again from intact tars in any case. From its source a shard comes back as the
manifest has it, or not at all. --drop-to leaves DIRECTORY alone: the new set links the intact shards,
rewrites the damaged ones without their bad samples and lists those in bad_sources.tsv; its manifest is
another, so a training run does not resume on it. Exit status 1 while damage remains.
"""
SPLIT_HELP = """\
example:
  swin-moe shards split data/in22k/train --val-per-class 50 --out data/in22k-split --workers 16

Writes OUT/train and OUT/val. Of a class of n samples min(K, n // 2) go to val, drawn by --seed and checksum.
"""
INFO_HELP = """\
examples:
  swin-moe shards info data/fashion-mnist
  swin-moe shards info data/in22k/train --classes 100
"""


def add_parser(subparsers: Commands) -> None:
    """Add `shards` with its commands to the launcher's `subparsers`."""
    shards = subparsers.add_parser("shards", help="make, verify, repair, split and count shards of images")
    shards.set_defaults(run=run)
    names = " | ".join(RUN)
    commands = shards.add_subparsers(dest="shards_command", required=True, metavar=names)
    add_pack(add_command(commands, "pack", "write a data set as shards", PACK_HELP))
    _add_index(add_command(commands, "index", "manifest and indices for tars made by others", INDEX_HELP))
    _add_verify(add_command(commands, "verify", "read shards back and name every bad sample", VERIFY_HELP))
    _add_repair(add_command(commands, "repair", "bring damaged shards back, or do without them", REPAIR_HELP))
    _add_split(add_command(commands, "split", "split off a validation set", SPLIT_HELP))
    count = add_command(commands, "info", "count samples, bytes, sizes and classes", INFO_HELP)
    _add_directory(count)
    count.add_argument(
        "--classes", type=int, default=30, help="name so many, the smallest (default %(default)s)"
    )


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="a split, or the directory that holds the splits")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=1, help="processes (default %(default)s)")


def _add_index(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", type=Path, help="the directory of the tars")
    add("--out", type=Path, help="where indices and manifest go (default: beside the tars)")
    add("--split", default="train", help="what the manifest calls it (default %(default)s)")
    add("--classes", type=Path, help="a file with a class name a line, in the order of the labels")
    add_member(parser, "EXTENSION")
    add("--image-sizes", action="store_true", help="as in pack: record height and width in the index")
    add("--label-key", default="label", help="of a .json that is an object (default %(default)s)")
    add("--check", choices=CHECKS, default="decode", help="as in pack (default %(default)s)")
    add("--max-bad", type=float, default=0.001, help="as in pack (default %(default)s)")
    _add_workers(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_directory(parser)
    parser.add_argument("--decode", action="store_true", help="decode every image as well")
    _add_workers(parser)


def _add_repair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("split", type=Path, metavar="DIRECTORY", help="a split")
    parser.add_argument("--drop-to", type=Path, help="make a new split here, without the bad samples")
    _add_workers(parser)
    add_source(parser, required=False)
    parser.add_argument("--seed", type=int, default=0, help="of synthetic images (default %(default)s)")


def _add_split(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", type=Path, help="a split")
    add("--out", type=Path, required=True, help="train and val become directories in it")
    add("--val-per-class", type=int, required=True, metavar="K", help="samples of each class for validation")
    add("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    _add_workers(parser)


def run(args: argparse.Namespace, _: list[str] | None = None) -> int:
    """Carry out a parsed `shards` command: the exit status, 1 when damage was found; or DataError."""
    return RUN[args.shards_command](args)


def splits_in(directory: Path) -> list[Path]:
    """`directory` itself if it is a split or holds none, otherwise the splits in it."""
    if (directory / MANIFEST_NAME).is_file():
        return [directory]
    return sorted(path.parent for path in directory.glob(f"*/{MANIFEST_NAME}")) or [directory]


def _run_index(args: argparse.Namespace) -> int:
    done = index_tars(
        args.directory,
        args.out,
        IndexOptions(
            split=args.split,
            fields=extensions(args.member),
            image_sizes=args.image_sizes,
            classes=read_classes(args.classes) if args.classes else None,
            label_key=args.label_key,
            check=args.check,
            max_bad=args.max_bad,
        ),
        workers=args.workers,
        progress=progress_line(str(args.directory), "tars"),
    )
    out, manifest = args.out or args.directory, done.manifest
    kinds = f"{len(manifest.classes)} classes"
    if manifest.fields != IMAGE_AND_LABEL:
        kinds = ", ".join(field.name for field in manifest.fields)
    what = f"{manifest.samples} samples of {kinds} in {len(manifest.shards)} tars"
    print(f"{out}: {what}, manifest {manifest.digest[:12]}")
    if done.bad:
        print(f"{len(done.bad)} keys left out, such as {done.bad[0].key}: {done.bad[0].reason} ({BAD_NAME})")
    for note in done.notes:
        print(note)
    if done.mixed:
        shuffled = f"a shuffled set would hold {done.mixed:.1f}"
        print(f"tars hold {done.classes_per_tar:.1f} classes on average; {shuffled}")
    print(GUARANTEES)
    return 0


def _run_verify(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise DataError(f"--workers ({args.workers}) must be at least 1")
    bad = 0
    for split in splits_in(args.directory):
        report = verify(split, decode=args.decode, workers=args.workers, progress=progress_line(str(split)))
        for shard, key, reason in report.bad:
            print(f"{split / shard}: {key}: {reason}")
        bad += len(report.bad)
        verdict = "nothing damaged" if report.ok else counted(len(report.bad), "problem")
        what = f"{report.samples} samples in {counted(report.shards, 'shard')}, {report.bytes} bytes"
        print(f"{split}: {what}: {verdict}")
    return 1 if bad else 0


def _run_repair(args: argparse.Namespace) -> int:
    source = make_source(args) if args.source else None
    line = progress_line(str(args.split))
    done = repair(args.split, source=source, drop_to=args.drop_to, workers=args.workers, progress=line)
    for what, names in (
        ("made again from its tar", done.reindexed),
        ("made again from source", done.rewritten),
    ):
        for name in names:
            print(f"{args.split / name}: {what}")
    for key, shard, label, reason in done.dropped:
        print(f"{args.split / shard}: {key}: left out (label {label}): {reason}")
    for shard, key, reason in done.remaining:
        print(f"{args.split / shard}: {key}: {reason}")
    if done.remaining:
        print(f"{len(done.remaining)} problems remain: pass --source (and --directory), or --drop-to NEW")
    elif not (done.reindexed or done.rewritten or done.dropped):
        print(f"{args.split}: nothing is damaged, nothing to repair")
    return 1 if done.remaining else 0


def _run_split(args: argparse.Namespace) -> int:
    made = split_off(
        args.directory,
        args.out,
        args.val_per_class,
        seed=args.seed,
        workers=args.workers,
        progress=lambda split: progress_line(str(args.out / split)),
    )
    for split, manifest in made.items():
        what = f"{manifest.samples} samples in {counted(len(manifest.shards), 'shard')}"
        print(f"{args.out / split}: {what}, manifest {manifest.digest[:12]}")
    return 0


def _run_info(args: argparse.Namespace) -> int:
    for split in splits_in(args.directory):
        summary = info(split)
        first, *rest = summary.lines(args.classes)
        print(f"{split}: {summary.manifest.name}/{summary.manifest.split}: {first}")
        for text in rest:
            print(f"  {text}")
    return 0


RUN = {
    "pack": run_pack,
    "index": _run_index,
    "verify": _run_verify,
    "repair": _run_repair,
    "split": _run_split,
    "info": _run_info,
}
