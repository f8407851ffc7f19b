"""The arguments of the commands of `swin-moe shards`."""

from pathlib import Path

from launcher.console.arguments import CommandParser, add_command, add_json, add_workers, arguments_in

HERE = "launcher.cli.parsers.shards"

VERIFY_HELP = """\
examples:
  swin-moe shards verify data/fashion-mnist              every digest, tar header, label and checksum
  swin-moe shards verify data/fashion-mnist/val --decode the pixels too

Exit status 1 when anything is wrong; each line names a shard, a key ("*": the whole file) and the reason.
To repair it: swin-moe shards repair
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


def add_arguments(parser: CommandParser) -> None:
    """Add the commands of `shards`."""
    names = "pack | index | verify | repair | split | labels | info"
    commands = parser.add_subparsers(required=True, metavar=names)
    add_command(commands, "pack", "write a data set as shards", arguments_in(f"{HERE}_pack"))
    add_command(
        commands, "index", "manifest and indices for tars made by others", arguments_in(f"{HERE}_index")
    )
    add_command(commands, "verify", "read shards back and name every bad sample", _add_verify)
    add_command(
        commands, "repair", "bring damaged shards back, or do without them", arguments_in(f"{HERE}_repair")
    )
    add_command(commands, "split", "split off a validation set", _add_split)
    add_command(commands, "labels", "right classes by file name, for eval", arguments_in(f"{HERE}_labels"))
    add_command(commands, "info", "count samples, bytes, sizes and classes", _add_info)


def _add_directory(parser: CommandParser) -> None:
    parser.add_argument("directory", type=Path, help="a split, or the directory that holds the splits")


def _add_verify(parser: CommandParser) -> None:
    parser.epilog = VERIFY_HELP
    parser.set_defaults(run="launcher.cli.shards_verify:run")
    add_json(parser)
    _add_directory(parser)
    parser.add_argument("--decode", action="store_true", help="decode every image as well")
    add_workers(parser)


def _add_split(parser: CommandParser) -> None:
    parser.epilog = SPLIT_HELP
    parser.set_defaults(run="launcher.cli.shards:run_split")
    add_json(parser)
    add = parser.add_argument
    add("directory", type=Path, help="a split")
    add("--out", type=Path, required=True, help="train and val become directories in it")
    add("--val-per-class", type=int, required=True, metavar="K", help="samples of each class for validation")
    add("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    add_workers(parser)


def _add_info(parser: CommandParser) -> None:
    parser.epilog = INFO_HELP
    parser.set_defaults(run="launcher.cli.shards_info:run")
    add_json(parser)
    _add_directory(parser)
    parser.add_argument(
        "--classes", type=int, default=30, help="name so many, the smallest (default %(default)s)"
    )
