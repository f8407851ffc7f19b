"""The arguments of `swin-moe shards repair`."""

from pathlib import Path

from launcher.cli.parsers.shards_source import add_source
from launcher.console.arguments import CommandParser, add_json, add_workers

REPAIR_HELP = """\
examples:
  swin-moe shards repair data/in1k/train --source imagenet-zip --directory ImageNet-Zip   byte for byte
  swin-moe shards repair data/in1k/train --drop-to data/in1k-repaired/train               without what is lost

Damaged indices are made again from intact tars in any case. From its source a shard comes back as the
manifest has it, or not at all. --drop-to leaves DIRECTORY alone: the new set links the intact shards,
rewrites the damaged ones without their bad samples and lists those in bad_sources.tsv; its manifest is
another, so a training run does not resume on it. Exit status 1 while damage remains.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `repair`."""
    parser.epilog = REPAIR_HELP
    parser.set_defaults(run="launcher.cli.shards:run_repair")
    add_json(parser)
    parser.add_argument("split", type=Path, metavar="DIRECTORY", help="a split")
    parser.add_argument("--drop-to", type=Path, help="make a new split here, without the bad samples")
    add_workers(parser)
    add_source(parser, required=False)
    parser.add_argument("--seed", type=int, default=0, help="of synthetic images (default %(default)s)")
