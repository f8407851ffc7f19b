"""`swin-moe shards labels`: right classes by file name as a file for `eval --labels`."""

import argparse
import json

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.verify.origins import origins
from launcher.cli.shards_source import make_source
from launcher.evaluation.labels import FORMAT
from launcher.evaluation.named_labels import images_by_name
from parallel.durable import atomic_write


def run_labels(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `shards labels`: the exit status."""
    if args.out.exists():
        raise DataError(f"--out {args.out} exists; choose another place, or delete it")
    manifest = Manifest.load(args.split)
    found = origins(args.split, make_source(args))
    images = images_by_name(args.images, found.names, found.left_out, manifest.classes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out, json.dumps({"format": FORMAT, "images": images}).encode())
    some = sum(map(bool, images))
    args.answer = {"file": args.out, "images": len(images), "labelled": some}
    print(f"{args.out}: classes of {some} of {len(images)} images; swin-moe eval RUN --labels {args.out}")
    return 0
