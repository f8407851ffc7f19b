"""The source of images that the arguments of `swin-moe shards` name."""

import argparse
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.pack.sources.coco import MIN_SIDE
from data_shards.pack.sources.fashion_canvas import CanvasOptions
from data_shards.pack.sources.fashion_mnist import PACKAGE, TIMEOUT_S, is_present
from data_shards.pack.sources.fashion_scenes import SceneOptions
from data_shards.pack.sources.kinetics import DEFAULT as KINETICS
from data_shards.pack.sources.moving_fashion import MotionOptions
from data_shards.pack.sources.registry import SOURCES, Source, call_source
from data_shards.pack.sources.something_something import DEFAULT as SOMETHING
from data_shards.video.prepare import VideoRecipe
from launcher.cli.parsers.shards_source import CANVAS, MOTION, SCENES, SYNTHETIC
from launcher.cli.shards_members import folders
from swin_moe.text_files import read_text

logger = logging.getLogger(__name__)

OF_FASHION = ("fashion-mnist", "fashion-canvas", "fashion-scenes", "moving-fashion")
OF_CLASSES = ("folder", "imagenet", "imagenet-zip", "imagenet22k")
OF_VIDEOS: Mapping[str, VideoRecipe] = {"kinetics": KINETICS, "something-something": SOMETHING}
VIDEO = {"side": "short_side", "key_distance": "key_distance", "crf": "crf"}  # of --video-NAME: the field
ONLY_FOR: Mapping[str, tuple[str, ...]] = {  # the sources that an option is for, where it is not for all
    "directory": tuple(name for name in SOURCES if name != "synthetic"),
    "allow_empty": OF_CLASSES,
    "as_split": ("folder",),
    "member": ("members",),
    "classes": ("ade20k", "coco", "kinetics", "members"),
    "coco_min_side": ("coco",),
    "coco_keep_empty": ("coco",),
    **{f"synthetic_{name}": ("synthetic",) for name in SYNTHETIC},
    **{f"canvas_{name}": ("fashion-canvas",) for name in CANVAS},
    **{f"scenes_{name}": ("fashion-scenes",) for name in SCENES},
    **{f"motion_{name}": ("moving-fashion",) for name in MOTION},
    **{f"video_{name}": tuple(OF_VIDEOS) for name in VIDEO},
}


def make_source(args: argparse.Namespace) -> Source:
    """The source that the arguments name; its notes go to stderr.

    Raises:
        DataError: there is no such source, an option is for another, or the source has no images to give.
    """
    if args.source is None:
        raise DataError(f"--source is needed; one of {', '.join(sorted(SOURCES))}")
    _check_options(args)
    if args.source in OF_FASHION and args.directory is None and not is_present():
        install_fashion_mnist()
    source = call_source(args.source, *_positional(args), **_options(args))
    for note in source.notes:
        logger.warning("%s", note)
    return source


def _check_options(args: argparse.Namespace) -> None:
    """Refuse an option that the source would ignore."""
    for option, sources in ONLY_FOR.items():
        is_other = args.source not in sources and not (option == "directory" and args.source not in SOURCES)
        if getattr(args, option) not in (None, False, []) and is_other:
            known = f"{', '.join(sources[:-1])} and {sources[-1]}" if len(sources) > 1 else sources[0]
            name = option.replace("_", "-")
            raise DataError(f"--{name} is for --source {known}; leave it out with --source {args.source}")


def _positional(args: argparse.Namespace) -> list[Any]:
    if args.source == "synthetic":
        return list(_given(args, "synthetic", SYNTHETIC).values())
    return [args.directory]


def _given(args: argparse.Namespace, prefix: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the arguments --PREFIX-NAME, or their defaults."""
    given = {name: getattr(args, f"{prefix}_{name}") for name in defaults}
    return {name: default if given[name] is None else given[name] for name, default in defaults.items()}


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What a source is called with by name."""
    options: dict[str, Any] = {}
    if args.source == "fashion-canvas":
        canvas = _given(args, "canvas", CANVAS)
        options |= {"num_train": canvas["train"], "num_val": canvas["val"]}
        options["options"] = CanvasOptions(
            sides=canvas["size"], items=canvas["items"], background=canvas["background"]
        )
    if args.source == "fashion-scenes":
        scenes = _given(args, "scenes", SCENES)
        options |= {"num_train": scenes["train"], "num_val": scenes["val"]}
        options["options"] = SceneOptions(sides=scenes["size"], items=scenes["items"])
    if args.source == "moving-fashion":
        motion = _given(args, "motion", MOTION)
        options |= {"num_train": motion["train"], "num_val": motion["val"]}
        options["options"] = MotionOptions(
            side=motion["size"],
            frames=motion["frames"],
            speed=motion["speed"],
            garment=motion["garment"],
            background=motion["background"],
        )
    if args.source in OF_VIDEOS:
        options["recipe"] = _recipe(args)
    if args.source in ("synthetic", "fashion-canvas", "fashion-scenes", "moving-fashion"):
        options["seed"] = getattr(args, "seed", 0)
    if args.source in OF_CLASSES:
        options["allow_empty"] = args.allow_empty
    if args.source in ("coco", "kinetics"):
        options["classes"] = read_classes(args.classes) if args.classes else ()
    if args.source == "coco":
        options["keep_empty"] = args.coco_keep_empty
        options["min_side"] = MIN_SIDE if args.coco_min_side is None else args.coco_min_side
    if args.source in ("ade20k", "coco", "folder", "members", *OF_VIDEOS):
        options["splits"] = getattr(args, "splits", None)
    if args.source == "folder":
        options["as_split"] = args.as_split
    if args.source == "ade20k":
        options["classes"] = args.classes
    if args.source == "members":
        options["members"] = folders(args.member)
        options["classes"] = read_classes(args.classes) if args.classes else ()
    return options


def _recipe(args: argparse.Namespace) -> VideoRecipe:
    """How videos are packed: the default of their source, and what is given."""
    given = {field: getattr(args, f"video_{name}") for name, field in VIDEO.items()}
    changed = {field: value for field, value in given.items() if value is not None}
    return replace(OF_VIDEOS[args.source], check=getattr(args, "check", "decode"), **changed)


def read_classes(path: Path) -> list[str]:
    """The names of classes in a text file, one a line; empty lines do not count."""
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--classes {path}: cannot read it ({error})") from error


def install_fashion_mnist() -> None:
    """Try `apt-get install` of the Debian package, as root only; without it the source downloads."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    timeout = f"Acquire::http::Timeout={TIMEOUT_S}"
    command = ["apt-get", "install", "-y", "--no-install-recommends", "-o", timeout, PACKAGE]
    logger.info("Fashion-MNIST is not on this machine; running: %s", " ".join(command))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15 * TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        logger.warning("apt-get failed: %s", reason)
