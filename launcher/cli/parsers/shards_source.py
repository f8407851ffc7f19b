"""The arguments that name a source of images: of `swin-moe shards pack` and `shards repair`."""

from pathlib import Path

from data_shards.pack.sources.registry import SOURCES
from data_shards.pack.sources.split_folders import ALIASES
from launcher.cli.parsers.shards_members import add_member
from launcher.console.arguments import CommandParser

SYNTHETIC = {"train": 4096, "val": 1024, "classes": 10, "size": 32}  # the defaults of --synthetic-...


def add_source(parser: CommandParser, required: bool) -> None:
    """Add the arguments that name a source."""
    add = parser.add_argument
    text = f"where the images come from: {', '.join(sorted(SOURCES))}, or MODULE:FUNCTION of your own"
    add("--source", required=required, metavar="SOURCE", help=text)
    add("--directory", type=Path, help="where the source lies")
    text = "of --source folder: DIRECTORY has no split folders, all of it is this split"
    add("--as-split", choices=tuple(ALIASES), help=text)
    text = "keep classes without images as classes (default: refuse them)"
    add("--allow-empty", action="store_true", help=text)
    add_member(parser, "FOLDER")
    add("--classes", type=Path, help="of --source members: a file with a class name a line")
    meanings = ("training samples", "validation samples", "classes", "side in pixels")
    for (name, default), meaning in zip(SYNTHETIC.items(), meanings, strict=True):
        text = f"of --source synthetic: {meaning} (default {default})"
        add(f"--synthetic-{name}", type=int, help=text)
