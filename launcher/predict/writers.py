"""Predictions for a person and for programs: text, JSON lines, CSV, and pictures in files."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import PIL.Image
import torch
from torch import Tensor

from launcher.predict.predictions import Prediction

Write = Callable[[Prediction, Sequence[Path]], None]  # with the pictures of the prediction


def record(prediction: Prediction, pictures: Sequence[Path]) -> dict[str, Any]:
    """A prediction as JSON has it."""
    known: dict[str, Any] = {"file": prediction.name}
    if prediction.label is not None:
        known["label"] = prediction.label
    if prediction.answer is None:
        return {**known, "error": prediction.error}
    if pictures:
        known["pictures"] = list(map(str, pictures))
    return {**known, **prediction.answer.record}


def text_writer(out: IO[str]) -> Write:
    """A line an image: its name and the answer."""

    def write(prediction: Prediction, pictures: Sequence[Path]) -> None:
        name = prediction.name.encode("utf-8", "backslashreplace").decode()
        shown = ascii(name)[1:-1] if any(not character.isprintable() for character in name) else name
        said = f"error: {prediction.error}" if prediction.answer is None else prediction.answer.text
        print(f"{shown}: {said}", file=out)

    return write


def json_writer(out: IO[str]) -> Write:
    """An object a line."""

    def write(prediction: Prediction, pictures: Sequence[Path]) -> None:
        print(json.dumps(record(prediction, pictures)), file=out)

    return write


def csv_writer(out: IO[str], columns: Sequence[str]) -> Write:
    """A row an image: file, label, error, and the columns of the task."""
    rows = csv.writer(out)
    rows.writerow(["file", "label", "error", *columns])

    def write(prediction: Prediction, pictures: Sequence[Path]) -> None:
        label = "" if prediction.label is None else prediction.label
        values = prediction.answer.row if prediction.answer else ()
        name = prediction.name.encode("utf-8", "backslashreplace").decode()
        rows.writerow([name, label, prediction.error or "", *values])

    return write


def write_pictures(directory: Path, number: int, pictures: dict[str, Tensor]) -> list[Path]:
    """Write the pictures of one image; returns their files, NUMBER.NAME.png.

    Args:
        directory: which exists.
        number: of the image among all, from 0.
        pictures: see `Predicting`.
    """
    written = []
    for name, pixels in pictures.items():
        written.append(directory / f"{number:06d}.{name}.png")
        PIL.Image.fromarray(_pixels(pixels).numpy()).save(written[-1])
    return written


def _pixels(picture: Tensor) -> Tensor:
    """(3, h, w) or (h, w), floats in 0 to 1 or uint8, as (h, w, 3) or (h, w) uint8."""
    picture = picture.cpu()
    if picture.dtype != torch.uint8:
        picture = (picture.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return (picture.permute(1, 2, 0) if picture.ndim == 3 else picture).contiguous()
