"""`swin-moe predict`: what a model says of images."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from launcher.config.errors import ConfigError
from launcher.console.progress import progress_line
from launcher.exit_codes import ExitCode
from launcher.predict.answerer import Asked
from launcher.predict.answerers import open_answerer, sought_by
from launcher.predict.inputs import image_inputs
from launcher.predict.predictions import Prediction, PredictOptions, predictions
from launcher.predict.writers import Write, csv_writer, json_writer, text_writer, write_pictures


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `predict`: the exit status."""
    for name in ("features", "pictures"):
        if (path := getattr(args, name)) is not None and path.exists():
            raise ConfigError(f"--{name} {path} exists; choose another place, or delete it")
    sought = sought_by(args.model)
    images, what = list(image_inputs(args.files, sought)), f"{sought.member}s"
    answerer = open_answerer(
        args.model,
        args.config,
        ema=args.ema,
        precision=args.precision,
        device=args.device,
        asked=Asked(
            top=args.top,
            threshold=args.threshold,
            features=args.features is not None,
            pictures=args.pictures is not None,
        ),
    )
    if args.pictures is not None:
        _make(args.pictures)
    write = _writer(args, answerer.columns)
    options = PredictOptions(batch_size=args.batch_size, threads=args.threads)
    names, features, failed = [], [], 0
    for number, one in enumerate(_shown(predictions(answerer, images, options), len(images), what)):
        pictures = write_pictures(args.pictures, number, dict(one.pictures)) if args.pictures else []
        write(one, pictures)
        failed += one.error is not None
        if one.features is not None:
            names.append(one.name)
            features.append(one.features)
    if args.features is not None:
        _save(args, names, features)
    if failed:
        print(f"{failed} of {len(images)} {what} cannot be used; their lines say why", file=sys.stderr)
    return ExitCode.USER_ERROR if failed else ExitCode.FINISHED


def _writer(args: argparse.Namespace, columns: Sequence[str]) -> Write:
    if args.csv:
        return csv_writer(sys.stdout, columns)
    return json_writer(sys.stdout) if args.json_lines else text_writer(sys.stdout)


def _shown(found: Iterator[Prediction], total: int, what: str) -> Iterator[Prediction]:
    """The predictions, with a line about the progress on stderr."""
    show = progress_line("predict", what)
    for done, prediction in enumerate(found, start=1):
        yield prediction
        show(done, total)


def _make(directory: Path) -> None:
    """Make the directory of the pictures.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--pictures {directory} cannot be made: {error.strerror}") from error


def _save(args: argparse.Namespace, names: list[str], features: list[Tensor]) -> None:
    """Write features (N, C) fp32, and the names of their N images as JSON in the metadata."""
    stacked = torch.stack(features) if features else torch.zeros(0, 0)
    save_file({"features": stacked}, args.features, {"files": json.dumps(names)})
