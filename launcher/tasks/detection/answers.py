"""The objects on single images, for `swin-moe predict`.

Legend: H, W height and width of an image at its own size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.tasks.answers import NOT_FINITE, Answer, AnswerOptions
from launcher.tasks.detection.detections import (
    DetectionPrediction,
    EvalInputs,
    ImageDetections,
    size_of,
)
from launcher.tasks.detection.pictures import captions, drawn

PARTS = ("index", "name", "score", "left", "top", "right", "bottom")  # of an object, in a row


def columns(options: AnswerOptions) -> list[str]:
    """Height, width and number of objects; the class, the score and the box of each, numbered from 1."""
    return [
        "height",
        "width",
        "objects",
        *(f"{part}{i + 1}" for i in range(options.objects) for part in PARTS),
    ]


def answers(prediction: DetectionPrediction, batch: Batch, options: AnswerOptions) -> Sequence[Answer | str]:
    """The objects of each image whose score is not below the threshold, best first."""
    return [
        _answer(prediction.of_image(row, size_of(batch, row)), options) if finite else NOT_FINITE
        for row, finite in enumerate(prediction.finite)
    ]


def _answer(found: ImageDetections, options: AnswerOptions) -> Answer:
    """All objects in the record; in the text and in the row as many as the options say."""
    (height, width), kept = found.size, found.above(options.threshold)
    names, objects = options.classes, list[dict[str, Any]]()
    for box, one in zip(kept.boxes.tolist(), kept.annotations(), strict=True):
        index, name = one["label"], names[one["label"]] if names else None
        objects.append({"index": index, "name": name, "score": one["score"], "box": box})
        if "segmentation" in one:
            objects[-1]["segmentation"] = one["segmentation"]
    few = objects[: options.objects]
    row: list[Any] = [height, width, len(objects)]
    for one in few:
        row += [one["index"], one["name"] or "", one["score"], *one["box"]]
    row += [""] * (len(columns(options)) - len(row))
    said = [_said(one) for one in few]
    if left := len(objects) - len(few):
        said.append(f"and {left} more")
    return Answer(
        text=f"{height} x {width} pixels: {', '.join(said) or 'no objects'}",
        record={"height": height, "width": width, "objects": objects},
        row=row,
    )


def _said(one: Mapping[str, Any]) -> str:
    """An object in a line: its class, its score, and its box as left, top, right and bottom."""
    name = one["index"] if one["name"] is None else one["name"]
    return f"{name} {one['score']:.1%} ({' '.join(f'{side:.0f}' for side in one['box'])})"


def pictures(
    task: Any, model: nn.Module, inputs: EvalInputs, prediction: DetectionPrediction, options: AnswerOptions
) -> Mapping[str, Tensor]:
    """The image with the objects that are in the answer: (3, height, width)."""
    found = prediction.of_image(0, size_of(inputs.batch, 0)).above(options.threshold)
    return {"objects": drawn(inputs.shown(task.config.data), found, captions(found, options.classes))}
