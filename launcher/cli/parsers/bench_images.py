"""The images of `swin-moe bench predict` and `bench serve`."""

from launcher.console.arguments import CommandParser, positive


def add_images(parser: CommandParser) -> None:
    """Add `--files` and `--synthetic-size`, for `launcher.bench.images.bench_images`."""
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--files",
        nargs="+",
        metavar="FILES",
        help="files, folders, patterns, shards: the first 256 images; default: synthetic JPEGs",
    )
    images.add_argument(
        "--synthetic-size", type=positive, metavar="SIDE", help="of synthetic images in pixels (default 500)"
    )
