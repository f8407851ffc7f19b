"""Images with what is there and what was found: boxes, masks, names of classes, scores.

Legend: H, W height and width of an image in pixels; n objects on it.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data_shards.codecs.objects import ImageObjects
from launcher.config.schema import DataConfig
from launcher.tasks.class_colours import class_colour
from launcher.tasks.detection.detections import (
    DetectionPrediction,
    EvalInputs,
    ImageDetections,
    as_found,
    size_of,
    truth_of,
)

LONGEST = 512  # pixels of the longer side of what is shown
GAP = 4  # pixels between two of a row
COVER = 0.45  # of the colour over the pixels of a mask
LINE = 2  # pixels of the line around a box
Colour = tuple[int, int, int]


def colour_of(label: int) -> Colour:
    """Red, green and blue of a class, in 0 to 255."""
    red, green, blue = (round(part * 255) for part in class_colour(label))
    return red, green, blue


def captions(found: ImageDetections, names: Sequence[str] | None) -> list[str]:
    """The name of each class, or its number, and the score: n of them."""
    return [
        f"{_name(int(label), names)} {score:.2f}"
        for label, score in zip(found.labels, found.scores, strict=True)
    ]


def captions_of_truth(truth: ImageObjects, names: Sequence[str] | None) -> list[str]:
    """The name of each class, or its number, and whether it is a crowd: n of them."""
    return [f"{_name(one.label, names)}{' (crowd)' if one.iscrowd else ''}" for one in truth.objects]


def beside_truth(
    image: Tensor, truth: ImageObjects, found: ImageDetections, names: Sequence[str] | None
) -> Tensor:
    """An image, its objects and the detections from left to right: (3, height, width) in 0 to 1.

    Args:
        image: (3, h, w) in 0 to 1, of any size.
        truth: its objects.
        found: the detections that are shown, at the image's own size.
        names: of the classes, if they are known.
    """
    there = as_found(truth)
    shown = [
        _resized(image, found.size),
        drawn(image, there, captions_of_truth(truth, names)),
        drawn(image, found, captions(found, names)),
    ]
    return torch.cat([F.pad(one, (0, GAP, 0, GAP)) for one in shown], dim=2)


def batch_picture(
    inputs: EvalInputs,
    prediction: DetectionPrediction,
    data: DataConfig,
    names: Sequence[str] | None,
    score: float,
) -> Tensor:
    """The first image of a batch, its objects and the detections, see `beside_truth`.

    Args:
        inputs: of the model.
        prediction: what it says.
        data: how images were normalized.
        names: of the classes, if they are known.
        score: the lowest of the detections that are shown.
    """
    found = prediction.of_image(0, size_of(inputs.batch, 0)).above(score)
    return beside_truth(inputs.shown(data), truth_of(inputs.batch, 0), found, names)


def drawn(image: Tensor, found: ImageDetections, texts: Sequence[str]) -> Tensor:
    """An image with boxes, masks and texts over it, the first ones on top: (3, height, width) in 0 to 1.

    Args:
        image: (3, h, w) in 0 to 1, of any size.
        found: at the image's own size.
        texts: one for each, n of them.
    """
    pixels = (_resized(image, found.size) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    colours = [colour_of(label) for label in found.labels.tolist()]
    canvas = Image.fromarray(_covered(pixels.copy(), found, colours))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    scale = np.array([canvas.width / found.size[1], canvas.height / found.size[0]] * 2)
    edges = np.array([canvas.width, canvas.height] * 2) - 1
    places = (found.boxes * scale).round().clip(0, edges).astype(int).tolist()
    rows = list(zip(places, colours, texts, strict=True))
    for place, colour, _ in reversed(rows):
        draw.rectangle(place, outline=colour, width=LINE)
    for (left, top, *_), colour, text in reversed(rows):
        _write(draw, font, (left, top), text, colour, canvas.size)
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1).float() / 255


def _name(label: int, names: Sequence[str] | None) -> str:
    return names[label] if names else str(label)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image in the size of what is shown of an image of H x W pixels, on the host."""
    height, width = (max(1, round(side * LONGEST / max(size))) for side in size)
    pixels = F.interpolate(image.cpu().float()[None], (height, width), mode="bilinear", antialias=True)
    return pixels[0].clamp(0, 1)


def _covered(
    pixels: NDArray[np.uint8], found: ImageDetections, colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """The pixels (height, width, 3), in which the masks are coloured."""
    if not found.masks:
        return pixels
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown).astype(int)
        for shown, side in zip(pixels.shape[:2], found.size, strict=True)
    )
    for bitmap, colour in reversed(list(zip(found.bitmaps(), colours, strict=True))):
        inside = bitmap[rows[:, None], columns].astype(bool)
        mixed = pixels[inside] * (1 - COVER) + np.array(colour) * COVER
        pixels[inside] = mixed.round().astype(np.uint8)
    return pixels


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    place: tuple[int, int],
    text: str,
    colour: Colour,
    size: tuple[int, int],
) -> None:
    """Write a text on its colour above a place; below it, or further left, where a picture of `size` ends."""
    if isinstance(font, ImageFont.ImageFont):  # without FreeType, of the characters of Latin-1 alone
        text = text.encode("latin-1", "replace").decode("latin-1")
    _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = size
    left = max(0, min(place[0], width - int(right) - 2))
    top = place[1] - int(bottom) - 2 if place[1] >= bottom + 2 else min(place[1], height - int(bottom) - 2)
    draw.rectangle((left, top, left + int(right) + 1, top + int(bottom) + 1), fill=colour)
    is_light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 128  # ITU-R BT.601
    draw.text((left + 1, top + 1), text, font=font, fill="black" if is_light else "white")
