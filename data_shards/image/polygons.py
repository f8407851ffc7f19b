"""Polygons to masks, by pycocotools: its rule defines what COCO's polygons mean.

It draws the outline at five times the size and keeps what falls on the columns' centres, so that other
rasterisers (Pillow, OpenCV, scikit-image) fill other pixels. Evaluation compares with pycocotools' masks.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from data_shards.image.rle import parse_counts


def polygon_counts(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """The counts (rle.py) of the union of polygons, in an image of height x width pixels: (n,) int64.

    Each polygon is x, y of three or more vertices in turn, in continuous coordinates. They must be near the
    image, since the time and the memory grow with the length of the outline.
    """
    parts = coco_mask.frPyObjects(
        [[float(number) for number in polygon] for polygon in polygons], height, width
    )
    return parse_counts(coco_mask.merge(parts)["counts"])
