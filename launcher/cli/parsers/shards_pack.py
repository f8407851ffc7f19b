"""The arguments of `swin-moe shards pack`."""

import argparse
import re
from pathlib import Path

from data_shards.pack.plan import SAMPLES_PER_SHARD
from data_shards.pack.reencode import CHECKS
from launcher.cli.parsers.shards_members import MEMBER_HELP
from launcher.cli.parsers.shards_source import add_source
from launcher.console.arguments import CommandParser, add_json, add_workers

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
PACK_HELP = (
    """\
examples:
  swin-moe shards pack --source fashion-mnist --out data/fashion-mnist --workers 2
  swin-moe shards pack --source folder --directory imagenet --out data/in1k --bytes-per-shard 100MB
  swin-moe shards pack --source folder --directory pets --as-split train --name pets --out data/pets
  swin-moe shards pack --source imagenet --directory downloads --out data/in1k --bytes-per-shard 100MB
  swin-moe shards pack --source imagenet-zip --directory ImageNet-Zip --out data/in1k --workers 16
  swin-moe shards pack --source imagenet22k --directory in22k --out data/in22k --short-side 256 --quality 90
  swin-moe shards pack --source shards --directory theirs --out data/theirs   shuffles tars made by others
  swin-moe shards pack --source ade20k --directory ADEChallengeData2016 --out data/ade20k
  swin-moe shards pack --source coco --directory coco --out data/coco --bytes-per-shard 100MB --workers 16
  swin-moe shards pack --source members --directory voc --out data/voc --image-sizes \
      --member image=images --member mask=masks:label_image --classes names.txt
  swin-moe shards pack --source fashion-canvas --canvas-train 8192 --canvas-size 64-96 --out data/canvas
  swin-moe shards pack --source fashion-scenes --scenes-train 4096 --out data/fashion-scenes
  swin-moe shards pack --source kinetics --directory k400 --out data/kinetics400 --bytes-per-shard 500MB \
      --workers 16
  swin-moe shards pack --source something-something --directory ssv2 --out data/something-something-v2
  swin-moe shards pack --source moving-fashion --motion-train 4096 --out data/moving-fashion
  swin-moe shards pack --source synthetic --synthetic-train 4096 --out data/synthetic
in a Slurm array (#SBATCH --array=0-63), the last task to end writes the manifest:
  swin-moe shards pack ... --task $SLURM_ARRAY_TASK_ID/64 --workers $SLURM_CPUS_PER_TASK
  swin-moe shards pack --out data/in22k --task merge           if it was killed just then

sources, each below --directory:
  folder         SPLIT/CLASS/**/*.jpg (.jpeg .png ...), SPLIT among train val test, or another common name;
                 with --as-split train it is CLASS/**/*.jpg, one split
  imagenet       ILSVRC2012_img_{train,val}.tar, read without unpacking, or Kaggle's ILSVRC/Data/CLS-LOC; with
                 LOC_val_solution.csv or ILSVRC2012_devkit_t12.tar.gz for the classes of val
  imagenet-zip   train.zip, train_map.txt (PATH, tab, label), val.zip, val_map.txt; read without unpacking
  imagenet22k    fall11_whole/ and ILSVRC2011fall_whole_map_{train,val}.txt (a JSON list of [path, label]);
                 without the lists the folders are the classes, and all images are train
  ade20k         images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, where label 0
                 is other and class k is k + 1; names of objectInfo150.txt or --classes
  coco           annotations/instances_{train,val}2017.json, and train2017/ or train2017.zip with the images
  kinetics       lists of "path label" (*train*.txt, *val*.txt or .csv) and the videos, or
                 SPLIT/CLASS/**/*.mp4; encoded again with a short side of 256 pixels, or as --video-side says
  members        a folder a member: SPLIT/FOLDER/**/STEM.ext or FOLDER/SPLIT/**/STEM.ext, paired by the stems
  shards         splits with a manifest.json, packed or indexed
  fashion-mnist  its four idx-ubyte files; without --directory they are looked for, installed or downloaded
  fashion-canvas garments of Fashion-MNIST on textured canvases, with a class for each pixel
  something-something  something-something-v2-{labels,train,validation}.json and videos named by their ids
  fashion-scenes garments of Fashion-MNIST as objects with boxes and masks; OUT/annotations gets a COCO JSON
  moving-fashion videos of garments of Fashion-MNIST that move; the class is the direction
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


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `pack`."""
    parser.epilog = PACK_HELP
    parser.set_defaults(run="launcher.cli.shards_pack:run_pack")
    add_json(parser)
    add = parser.add_argument
    add("--out", required=True, type=Path, help="the splits become directories in it")
    add("--splits", nargs="+", help="default: all that the source has")
    add("--name", help="what the manifest calls the data set (default: the source)")
    size = parser.add_mutually_exclusive_group()
    text = "limit of a tar, reckoned by the sizes of the sources: 100MB, 64MiB"
    size.add_argument("--bytes-per-shard", type=parse_bytes, help=text)
    size.add_argument(
        "--samples-per-shard", type=int, help=f"default {SAMPLES_PER_SHARD}; aim at 100 MB a shard"
    )
    add("--seed", type=int, default=0, help="of the shuffle and of what is made up (default %(default)s)")
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
    add_workers(parser)
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
