"""COCO's average precisions and recalls, as pycocotools computes them.

`COCOeval.summarize` is not used: it prints, and it gives -1 for the first figure unless 100 is among
`maxDets`. The figures here are read from the arrays of `COCOeval.accumulate`, and one that has no object is
None, not -1.

Legend: T thresholds of the IoU (0.50, 0.55 ... 0.95), R recalls (0, 0.01 ... 1), K classes, A ranges of areas
(all, small, medium, large), M numbers of detections of an image that count (1, 10, 100).
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from launcher.config.errors import ConfigError
from launcher.tasks.detection.options import Evaluator

IouType = Literal["bbox", "segm"]

AT_50, AT_75 = 0, 5  # of the thresholds
ALL, SMALL, MEDIUM, LARGE = range(4)  # of the areas: below 32 x 32 pixels, above 96 x 96, and between them
FIGURES = (  # in COCO's order
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)


class CocoImage(NamedTuple):
    """An image, its objects and its detections, as dictionaries in COCO's format.

    `truth` have label, bbox, area, iscrowd and segmentation. `found` have label, bbox, score and, for masks,
    segmentation (a compressed RLE). A bbox is x, y, width, height. Equal scores are ordered by the numbers of
    the images, and inside of an image as they are here.
    """

    number: int  # of its own, from 1
    height: int
    width: int
    truth: Sequence[dict[str, Any]]
    found: Sequence[dict[str, Any]]


class CocoFigures(NamedTuple):
    """The figures of a split, fractions; None where no object decides them."""

    values: dict[str, float | None]  # by the names in FIGURES
    class_ap: list[float | None]  # (K,)


def coco_figures(
    images: Iterable[CocoImage],
    num_classes: int,
    iou_type: IouType,
    evaluator: Evaluator = "pycocotools",
) -> CocoFigures:
    """The figures of the images of a split.

    Args:
        images: of the split, in any order.
        num_classes: K.
        iou_type: whether boxes or masks are compared.
        evaluator: the package that matches detections with objects.

    Raises:
        ConfigError: the package is not installed.
    """
    coco, cocoeval = _classes(evaluator)
    sizes, truth, found = list[dict[str, int]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for image in images:
        sizes.append({"id": image.number, "height": image.height, "width": image.width})
        truth += _numbered(image.number, _truth(image, iou_type), len(truth))
        found += _numbered(image.number, _found(image, iou_type), len(found))
    categories = [{"id": 1 + label, "name": str(label)} for label in range(num_classes)]
    head = {"info": {}, "images": sizes, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        sides = [_indexed(coco, {**head, "annotations": annotations}) for annotations in (truth, found)]
        run = cocoeval(*sides, iou_type)
        run.evaluate()
        run.accumulate()
    return CocoFigures(*_figures(np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])))


def _classes(evaluator: Evaluator) -> tuple[Any, Any]:
    """The class that holds data, and the one that evaluates them."""
    if evaluator == "pycocotools":
        return COCO, COCOeval
    try:
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise ConfigError(
            "detection.evaluator (faster_coco_eval) needs its package: pip install 'swin-moe[coco]'; or set "
            "detection.evaluator=pycocotools"
        ) from error
    return FasterCOCO, COCOeval_faster


def _indexed(coco: Any, data: dict[str, Any]) -> Any:
    """Data as if they were read from a file."""
    one = coco()
    one.dataset = data
    one.createIndex()
    return one


def _numbered(image: int, annotations: Iterable[dict[str, Any]], before: int) -> Iterator[dict[str, Any]]:
    """Annotations of an image with numbers from 1 over all images: COCOeval takes a number 0 for none."""
    for number, one in enumerate(annotations, before + 1):
        yield {**one, "id": number, "image_id": image}


def _truth(image: CocoImage, iou_type: IouType) -> Iterator[dict[str, Any]]:
    for one in image.truth:
        kept = {name: one[name] for name in _read(iou_type, "area", "iscrowd")}
        yield {**kept, "category_id": 1 + one["label"]}


def _found(image: CocoImage, iou_type: IouType) -> Iterator[dict[str, Any]]:
    """The area of a detection is that of what is compared: the box or the mask."""
    areas = _mask_areas(image) if iou_type == "segm" else [_box_area(one) for one in image.found]
    for one, area in zip(image.found, areas, strict=True):
        kept = {name: one[name] for name in _read(iou_type, "score")}
        yield {**kept, "category_id": 1 + one["label"], "area": area, "iscrowd": 0}


def _read(iou_type: IouType, *names: str) -> tuple[str, ...]:
    """What is needed of an annotation."""
    return ("bbox", *names, *(["segmentation"] if iou_type == "segm" else []))


def _box_area(annotation: dict[str, Any]) -> float:
    *_, width, height = annotation["bbox"]
    return float(width * height)


def _mask_areas(image: CocoImage) -> list[float]:
    areas = mask.area([one["segmentation"] for one in image.found]) if image.found else []
    return [float(area) for area in areas]


def _figures(
    precision: NDArray[np.float64], recall: NDArray[np.float64]
) -> tuple[dict[str, float | None], list[float | None]]:
    """The means of precision (T, R, K, A, M) and recall (T, K, A, M); entries of -1 have no objects."""
    areas = (SMALL, MEDIUM, LARGE)
    best = precision[..., -1]
    parts = [
        best[..., ALL],
        best[AT_50, ..., ALL],
        best[AT_75, ..., ALL],
        *(best[..., area] for area in areas),
        *(recall[:, :, ALL, count] for count in range(recall.shape[-1])),
        *(recall[:, :, area, -1] for area in areas),
    ]
    values = dict(zip(FIGURES, map(_mean, parts), strict=True))
    return values, [_mean(best[:, :, label, ALL]) for label in range(best.shape[2])]


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None
