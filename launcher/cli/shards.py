"""`swin-moe shards index | repair | split`: write what is missing of shards."""

import argparse
from dataclasses import asdict

from data_shards.format.fields import IMAGE_AND_LABEL
from data_shards.pack.indexing import GUARANTEES, IndexOptions, index_tars
from data_shards.pack.progress import BAD_NAME
from data_shards.pack.split import split_off
from data_shards.verify.repair import repair
from launcher.cli.shards_facts import split_facts
from launcher.cli.shards_members import extensions
from launcher.cli.shards_source import make_source, read_classes
from launcher.console.counts import counted
from launcher.console.progress import progress_line


def run_index(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `shards index`: the exit status."""
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
    left_out = [{"key": bad.key, "reason": bad.reason} for bad in done.bad]
    args.answer = {**split_facts(out, manifest), "left_out": left_out, "notes": list(done.notes)}
    if done.bad:
        print(f"{len(done.bad)} keys left out, such as {done.bad[0].key}: {done.bad[0].reason} ({BAD_NAME})")
    for note in done.notes:
        print(note)
    if done.mixed:
        shuffled = f"a shuffled set would hold {done.mixed:.1f}"
        print(f"tars hold {done.classes_per_tar:.1f} classes on average; {shuffled}")
    print(GUARANTEES)
    return 0


def run_repair(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `shards repair`: the exit status, 1 when damage remains."""
    source = make_source(args) if args.source else None
    line = progress_line(str(args.split))
    done = repair(args.split, source=source, drop_to=args.drop_to, workers=args.workers, progress=line)
    args.answer = {"directory": args.split, "intact": not done.remaining, **asdict(done)}
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


def run_split(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `shards split`: the exit status."""
    made = split_off(
        args.directory,
        args.out,
        args.val_per_class,
        seed=args.seed,
        workers=args.workers,
        progress=lambda split: progress_line(str(args.out / split)),
    )
    args.answer = [split_facts(args.out / split, manifest) for split, manifest in made.items()]
    for split, manifest in made.items():
        what = f"{manifest.samples} samples in {counted(len(manifest.shards), 'shard')}"
        print(f"{args.out / split}: {what}, manifest {manifest.digest[:12]}")
    return 0
