"""The arguments that name a source of images: of `swin-moe shards pack` and `shards repair`."""

import argparse
import re
from pathlib import Path

from data_shards.pack.sources.coco import MIN_SIDE
from data_shards.pack.sources.fashion_canvas import BACKGROUNDS
from data_shards.pack.sources.kinetics import DEFAULT as KINETICS
from data_shards.pack.sources.moving_fashion import BACKGROUNDS as MOTION_BACKGROUNDS
from data_shards.pack.sources.moving_fashion import MotionOptions
from data_shards.pack.sources.registry import SOURCES
from data_shards.pack.sources.something_something import DEFAULT as SOMETHING
from data_shards.pack.sources.split_folders import ALIASES
from launcher.cli.parsers.shards_members import add_member
from launcher.console.arguments import CommandParser

SYNTHETIC = {"train": 4096, "val": 1024, "classes": 10, "size": 32}  # the defaults of --synthetic-...
CANVAS = {"train": 4096, "val": 512, "size": (64, 96), "items": (1, 5), "background": BACKGROUNDS[0]}
SCENES = {"train": 4096, "val": 512, "size": (128, 256), "items": (1, 6)}
OF_MOTION = MotionOptions()
MOTION = {
    "train": 4096,
    "val": 512,
    "size": OF_MOTION.side,
    "frames": OF_MOTION.frames,
    "speed": OF_MOTION.speed,
    "garment": OF_MOTION.garment,
    "background": OF_MOTION.background,
}


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
    text = "of --source members, ade20k, coco and lists of kinetics: a file with a class name a line"
    add("--classes", type=Path, help=text)
    text = f"of --source coco: leave out training images of a shorter side (default {MIN_SIDE} pixels)"
    add("--coco-min-side", type=int, metavar="PIXELS", help=text)
    text = "of --source coco: keep training images without an object"
    add("--coco-keep-empty", action="store_true", help=text)
    meanings = ("training samples", "validation samples", "classes", "side in pixels")
    for (name, default), meaning in zip(SYNTHETIC.items(), meanings, strict=True):
        text = f"of --source synthetic: {meaning} (default {default})"
        add(f"--synthetic-{name}", type=int, help=text)
    of = "of --source fashion-canvas:"
    for name, meaning in {"train": "training", "val": "validation"}.items():
        text = f"{of} {meaning} canvases (default {CANVAS[name]})"
        add(f"--canvas-{name}", type=int, metavar="N", help=text)
    text = f"{of} range of height and of width in pixels (default 64-96)"
    add("--canvas-size", type=parse_range, metavar="LOW-HIGH", help=text)
    text = f"{of} range of the number of garments (default 1-5)"
    add("--canvas-items", type=parse_range, metavar="LOW-HIGH", help=text)
    text = f"{of} the background is one more class, or has none (default {CANVAS['background']})"
    add("--canvas-background", choices=BACKGROUNDS, help=text)
    of = "of --source fashion-scenes:"
    for name, meaning in {"train": "training", "val": "validation"}.items():
        add(f"--scenes-{name}", type=int, metavar="N", help=f"{of} {meaning} scenes (default {SCENES[name]})")
    text = f"{of} range of height and of width in pixels (default 128-256)"
    add("--scenes-size", type=parse_range, metavar="LOW-HIGH", help=text)
    text = f"{of} range of the number of garments (default 1-6)"
    add("--scenes-items", type=parse_range, metavar="LOW-HIGH", help=text)
    _add_motion(parser)
    _add_video(parser)


def _add_motion(parser: CommandParser) -> None:
    """Add the options of moving-fashion."""
    meanings = {
        "train": ("N", "training videos"),
        "val": ("N", "validation videos"),
        "size": ("PIXELS", "side of the canvas in pixels"),
        "frames": ("N", "frames of a video"),
        "speed": ("LOW-HIGH", "range of the pixels that a garment moves by in a frame"),
        "garment": ("LOW-HIGH", "range of the side of a garment in pixels"),
    }
    for name, (value, meaning) in meanings.items():
        default = MOTION[name]
        shown = "-".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"of --source moving-fashion: {meaning} (default {shown})"
        kind = parse_range if isinstance(default, tuple) else int
        parser.add_argument(f"--motion-{name}", type=kind, metavar=value, help=text)
    text = f"of --source moving-fashion: black, or stripes (default {OF_MOTION.background})"
    parser.add_argument("--motion-background", choices=MOTION_BACKGROUNDS, help=text)


def _add_video(parser: CommandParser) -> None:
    """Add the options of sources of video files."""
    add, of = parser.add_argument, "of --source kinetics and something-something:"
    text = f"{of} encode again as H.264, a longer short side shrunk to so many pixels; 0 copies the video"
    text += f" (default {KINETICS.short_side} of kinetics, {SOMETHING.short_side} of something-something)"
    add("--video-side", type=int, metavar="PIXELS", help=text)
    text = f"{of} frames from a key frame to the next, where it is encoded (default {KINETICS.key_distance})"
    add("--video-key-distance", type=int, metavar="FRAMES", help=text)
    text = f"{of} x264's rate factor, 0 ... 51, lower is finer (default {KINETICS.crf})"
    add("--video-crf", type=int, metavar="N", help=text)


def parse_range(text: str) -> tuple[int, int]:
    """(low, high) of "64-96", or of "64"."""
    if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range; write 64-96, or one number")
    return int(match[1]), int(match[2] or match[1])
