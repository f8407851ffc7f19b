"""The arguments of `swin-moe shards index`."""

from pathlib import Path

from data_shards.pack.reencode import CHECKS
from launcher.cli.parsers.shards_members import MEMBER_HELP, add_member
from launcher.console.arguments import CommandParser, add_json, add_workers

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


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `index`."""
    parser.epilog = INDEX_HELP
    parser.set_defaults(run="launcher.cli.shards:run_index")
    add_json(parser)
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
    add_workers(parser)
