"""`swin-moe serve`: a model behind HTTP."""

import argparse
from typing import TYPE_CHECKING

import torch

from launcher.config.errors import ConfigError
from launcher.deploy.artifact import open_predictor
from launcher.predict.answerer import Asked
from launcher.predict.answerers import open_answerer
from launcher.serve.batcher import BatchOptions
from launcher.serve.options import FOR_CLASSES, FOR_MAPS, Bounds, Limits, ServeOptions

if TYPE_CHECKING:  # it imports FastAPI
    from launcher.serve.app import Interface

MIB = 2**20


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out a parsed `serve`: the exit status."""
    try:
        from launcher.serve.server import listen, serve
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'swin-moe[serve]'") from error
    from launcher.serve.served import has_class_map

    with_map = has_class_map(args.model)
    options = serve_options(args, FOR_MAPS if with_map else FOR_CLASSES)
    with listen(args.host, args.port) as listening:  # a port in use is said before a model is loaded
        if args.threads:
            torch.set_num_threads(args.threads)
        serve(open_interface(args, with_map), options, listening)
    return 0


def serve_options(args: argparse.Namespace, bounds: Bounds) -> ServeOptions:
    """The options that were given, and the bounds of a model for those that were not.

    Raises:
        ConfigError: a request may have more images than are taken at once.
    """
    queue, images = args.max_queue or bounds.queue, args.max_images or bounds.images
    if images > queue:
        raise ConfigError(f"--max-images ({images}) must be at most --max-queue ({queue})")
    return ServeOptions(
        batches=BatchOptions(
            max_batch=args.max_batch,
            max_wait_s=args.max_wait_ms / 1e3,
            workers=args.workers,
            max_queue=queue,
        ),
        limits=Limits(
            body_bytes=args.max_body_mib * MIB, images=images, pixels=args.max_pixels or bounds.pixels
        ),
        decode_threads=args.decode_threads,
    )


def open_interface(args: argparse.Namespace, with_map: bool) -> "Interface":
    """The model of the arguments, which has a class for each pixel, or one for an image.

    Raises:
        ConfigError, ArtifactError, ModelError, WeightsError, CheckpointError: as `open_predictor` and
            `open_answerer`.
    """
    from launcher.serve.classify import ClassifyInterface
    from launcher.serve.segment import SegmentInterface
    from launcher.serve.served import ServedClassifier, ServedSegmenter

    opened = {"ema": args.ema, "precision": args.precision, "device": args.device}
    if not with_map:
        return ClassifyInterface(ServedClassifier(open_predictor(args.model, args.config, **opened)))
    answerer = open_answerer(args.model, args.config, asked=Asked(class_map=True), **opened)
    from launcher.predict.task_answerer import TaskAnswerer  # imports DeepSpeed

    assert isinstance(answerer, TaskAnswerer)
    return SegmentInterface(ServedSegmenter(str(args.model), answerer))
