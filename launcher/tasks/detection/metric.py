"""COCO's figures of boxes and masks over a split (Lin et al. 2014, arXiv:1405.0312).

Each image has one record, its detections and its objects, on whichever rank it was evaluated. The records lie
in files, and those of all ranks meet on rank 0, where pycocotools compares them.

Legend: K classes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_shards.codecs.objects import ImageObjects
from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.stream.batch import Batch
from launcher.metrics.metric import MetricTable
from launcher.metrics.spool import SpoolMetric
from launcher.tasks.detection.coco_eval import CocoImage, IouType, coco_figures
from launcher.tasks.detection.detections import (
    DetectionPrediction,
    ImageDetections,
    size_of,
    truth_annotations,
    truth_of,
)
from launcher.tasks.detection.options import Evaluator

RESULTS = "detections.json"
TYPES: dict[str, IouType] = {"box": "bbox", "mask": "segm"}  # by what the names of values begin with


class ImageRecord(NamedTuple):
    """What is known of an image."""

    truth: ImageObjects
    found: ImageDetections


class DetectionMetric(SpoolMetric):
    """Average precisions and recalls of boxes, and of masks if the model has them.

    Args:
        num_classes: K.
        masks: whether masks are compared too.
        evaluator: the package that computes the figures.
        directory: of the records' files; None is the system's directory for temporary files.
    """

    primary, higher_is_better = "box_ap", True

    def __init__(
        self,
        num_classes: int,
        *,
        masks: bool = True,
        evaluator: Evaluator = "pycocotools",
        directory: Path | None = None,
    ) -> None:
        super().__init__(directory)
        self.num_classes, self.evaluator = num_classes, evaluator
        self.types = TYPES if masks else {"box": TYPES["box"]}

    def record(self, prediction: DetectionPrediction, batch: Batch, row: int) -> ImageRecord:
        """The detections and the objects of an image; DataError for an object without a mask to compare."""
        truth = truth_of(batch, row)
        if "mask" in self.types and any(one.segmentation is None for one in truth.objects):
            raise DataError(
                f"image {truth.image_id} has an object without a mask: set detection.head.masks=false, or "
                "pack annotations with masks"
            )
        return ImageRecord(truth, prediction.of_image(row, size_of(batch, row)))

    def values(self, records: Iterable[ImageRecord]) -> dict[str, Any]:
        """box_ap and the other figures of COCO for boxes, mask_ap ... for masks; images, objects, detections.

        Figures are fractions, and None where no object decides them: those of a class without objects are
        left out of the means, as COCO does. Crowds are no objects.
        """
        objects, detections, ids = [0] * self.num_classes, 0, list[int]()
        for one in records:
            ids.append(one.truth.image_id)
            detections += len(one.found.scores)
            for known in one.truth.objects:
                objects[known.label] += not known.iscrowd
        values: dict[str, Any] = {}
        by_class: dict[str, list[float | None]] = {}
        for name, iou_type in self.types.items():
            images = _coco_images(records, _numbers(ids))
            figures = coco_figures(images, self.num_classes, iou_type, self.evaluator)
            values |= {f"{name}_{figure}": value for figure, value in figures.values.items()}
            by_class[f"class_{name}_ap"] = figures.class_ap
        counts = {"images": len(ids), "objects": sum(objects), "detections": detections}
        classes = sum(count > 0 for count in objects)
        return {**values, "classes": classes, **counts, **by_class, "class_objects": objects}

    def line(self, values: Mapping[str, Any]) -> str:
        """The average precisions as text."""
        named = {
            f"{name} AP{threshold}": values[f"{name}_ap{threshold}"]
            for name in self.types
            for threshold in ("", "50", "75")
        }
        shown = ", ".join(
            f"{name} {'none' if value is None else f'{value:.2%}'}" for name, value in named.items()
        )
        return f"{shown} over {values['classes']} classes on {values['images']} images"

    def tables(self, values: Mapping[str, Any], classes: Sequence[str]) -> Mapping[str, MetricTable]:
        """A row for each class, the lowest AP of boxes first, and classes without objects last."""
        names = classes or [str(label) for label in range(self.num_classes)]
        columns = [f"{name}_ap" for name in self.types]
        by_class = [*(values[f"class_{column}"] for column in columns), values["class_objects"]]
        rows = sorted(zip(names, *by_class, strict=True), key=lambda row: (row[1] is None, row[1] or 0.0))
        return {"classes": MetricTable(("class", *columns, "objects"), rows)}

    def write(self, directory: Path, manifest: Manifest) -> Sequence[Path]:
        """Write all detections as COCO's results, in the order of the images: detections.json.

        `category_id` are those of the data set; the number of the class where the data set has none.
        """
        path, ids = directory / RESULTS, manifest.category_ids or range(self.num_classes)
        with path.open("w") as file:
            file.write("[")
            for number, one in enumerate(_results(self.spool, ids)):
                file.write(f"{',' if number else ''}\n{json.dumps(one)}")
            file.write("\n]\n")
        return (path,)


def _numbers(ids: Sequence[int]) -> list[int]:
    """The place of each image in the order of their ids, from 1."""
    numbers = [0] * len(ids)
    for number, index in enumerate(sorted(range(len(ids)), key=ids.__getitem__), 1):
        numbers[index] = number
    return numbers


def _coco_images(records: Iterable[ImageRecord], numbers: Sequence[int]) -> Iterator[CocoImage]:
    for number, (truth, found) in zip(numbers, records, strict=True):
        yield CocoImage(number, *found.size, [*truth_annotations(truth)], [*found.annotations()])


def _results(records: Iterable[ImageRecord], category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    for truth, found in records:
        for one in found.annotations():
            category = category_ids[one.pop("label")]
            yield {"image_id": truth.image_id, "category_id": category, **one}
