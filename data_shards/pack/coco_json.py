"""The COCO JSON of a packed split, which pycocotools and other programs read.

OUT/annotations/instances_SPLIT.json    beside the splits OUT/SPLIT, as in COCO's own folders
"""

import json
from pathlib import Path
from typing import Any

from data_shards.codecs.objects import ImageObject
from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.pack.sources.packed import packed_samples
from parallel.durable import atomic_write

MEMBER = "annotations"
FOLDER = "annotations"  # beside the splits


def coco_json(directory: Path) -> dict[str, Any]:
    """Images, annotations and categories of the split in `directory`, images by their ids.

    A class without a category id has its label. DataError: no manifest, no member `annotations`, damage.
    """
    manifest = Manifest.load(directory)
    manifest.check_members([MEMBER], str(directory))
    ids = manifest.category_ids or tuple(range(len(manifest.classes)))
    samples = packed_samples(directory, manifest)
    images, annotations = [], []
    for i in range(len(samples)):
        record = CODECS["objects"].decode(samples[i][MEMBER])
        size = {"height": record.height, "width": record.width}
        images.append({"id": record.image_id, "file_name": record.file_name, **size})
        annotations += [_annotation(item, record.image_id, ids) for item in record.objects]
    return {
        "info": {"description": manifest.writer.source},
        "images": sorted(images, key=lambda image: image["id"]),
        "annotations": sorted(annotations, key=lambda annotation: annotation["id"]),
        "categories": [
            {"id": number, "name": name} for number, name in zip(ids, manifest.classes, strict=True)
        ],
    }


def _annotation(item: ImageObject, image_id: int, ids: tuple[int, ...]) -> dict[str, Any]:
    if item.label >= len(ids):
        raise DataError(f"object {item.id} has label {item.label}, where the data has {len(ids)} classes")
    found = {
        "id": item.id,
        "image_id": image_id,
        "category_id": ids[item.label],
        "bbox": item.bbox,
        "area": item.area,
        "iscrowd": item.iscrowd,
    }
    return found if item.segmentation is None else found | {"segmentation": item.segmentation}


def write_coco_json(directory: Path) -> Path:
    """Write the JSON of the split in `directory` beside it, and return its path; DataError as `coco_json`."""
    path = directory.parent / FOLDER / f"instances_{directory.name}.json"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, json.dumps(coco_json(directory)).encode())
    return path
