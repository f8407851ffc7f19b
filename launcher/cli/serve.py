"""`swin-moe serve`: a model behind HTTP."""

import argparse

import torch

from launcher.config.errors import ConfigError
from launcher.deploy.artifact import open_predictor
from launcher.serve.batcher import BatchOptions
from launcher.serve.options import Limits, ServeOptions

MIB = 2**20


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out a parsed `serve`: the exit status."""
    try:
        from launcher.serve.server import listen, serve
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'swin-moe[serve]'") from error
    from launcher.serve.served import ServedModel

    if args.max_images > args.max_queue:
        raise ConfigError(f"--max-images ({args.max_images}) must be at most --max-queue ({args.max_queue})")
    options = ServeOptions(
        batches=BatchOptions(
            max_batch=args.max_batch,
            max_wait_s=args.max_wait_ms / 1e3,
            workers=args.workers,
            max_queue=args.max_queue,
        ),
        limits=Limits(body_bytes=args.max_body_mib * MIB, images=args.max_images, pixels=args.max_pixels),
        decode_threads=args.decode_threads,
    )
    with listen(args.host, args.port) as listening:  # a port in use is said before a model is loaded
        if args.threads:
            torch.set_num_threads(args.threads)
        predictor = open_predictor(
            args.model, args.config, ema=args.ema, precision=args.precision, device=args.device
        )
        serve(ServedModel(predictor), options, listening)
    return 0
