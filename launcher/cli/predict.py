"""`swin-moe predict`: what a model says of images."""

import argparse
import json
import sys
from collections.abc import Iterator

import torch
from safetensors.torch import save_file
from torch import Tensor

from launcher.config.errors import ConfigError
from launcher.console.progress import progress_line
from launcher.deploy.artifact import open_predictor
from launcher.exit_codes import ExitCode
from launcher.predict.inputs import image_inputs
from launcher.predict.predictions import Prediction, PredictOptions, predictions
from launcher.predict.writers import csv_writer, json_writer, text_writer


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `predict`: the exit status."""
    if args.features is not None and args.features.exists():
        raise ConfigError(f"--features {args.features} exists; choose another place, or delete it")
    images = list(image_inputs(args.files))
    predictor = open_predictor(
        args.model, args.config, ema=args.ema, precision=args.precision, device=args.device
    )
    top = min(args.top, predictor.model.num_classes)
    options = PredictOptions(
        top=top, batch_size=args.batch_size, threads=args.threads, features=args.features is not None
    )
    if args.csv:
        write = csv_writer(sys.stdout, top)
    else:
        write = json_writer(sys.stdout) if args.json_lines else text_writer(sys.stdout)
    names, features, failed = [], [], 0
    for prediction in _shown(predictions(predictor, images, options), len(images)):
        write(prediction)
        failed += prediction.error is not None
        if prediction.features is not None:
            names.append(prediction.name)
            features.append(prediction.features)
    if args.features is not None:
        _save(args, names, features)
    if failed:
        print(f"{failed} of {len(images)} images cannot be used; their lines say why", file=sys.stderr)
    return ExitCode.USER_ERROR if failed else ExitCode.FINISHED


def _shown(found: Iterator[Prediction], total: int) -> Iterator[Prediction]:
    """The predictions, with a line about the progress on stderr."""
    show = progress_line("predict", "images")
    for done, prediction in enumerate(found, start=1):
        yield prediction
        show(done, total)


def _save(args: argparse.Namespace, names: list[str], features: list[Tensor]) -> None:
    """Write features (N, C) fp32, and the names of their N images as JSON in the metadata."""
    stacked = torch.stack(features) if features else torch.zeros(0, 0)
    save_file({"features": stacked}, args.features, {"files": json.dumps(names)})
