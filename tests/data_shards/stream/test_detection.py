"""Objects in a stream: views against slow loops, pycocotools and torch; no worker changes them."""

import io
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_OBJECTS
from data_shards.format.rng import DrawKey
from data_shards.format.samples import Source
from data_shards.image.geometry import Geometry
from data_shards.image.multi_scale import MultiScaleTransform
from data_shards.order.sampling import TrainSampling
from data_shards.pack.write import pack
from data_shards.stream.collate import MultipleOf, SmallestOf
from data_shards.stream.detection import ObjectImages, ObjectViews
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, StreamOptions
from data_shards.stream.train import TrainStream
from tests.data_shards.image.smooth_images import smooth_image
from tests.data_shards.made_samples import MadeSamples

COUNT, SEED, CLASSES = 9, 4, 6
MULTI_SCALE = MultiScaleTransform(
    short_sides=(40, 56, 72), long_side=110, crop_short_sides=(44, 60), crop_sides=(24, 40)
)
VIEWS = ObjectViews(views=MULTI_SCALE, num_classes=CLASSES, canvas=(128, 128))


def size_of(number: int) -> tuple[int, int]:
    return 43 + 5 * number, 89 - 4 * number


def polygon(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """A star of 7 corners inside of the image."""
    angles = np.sort(rng.random(7)) * 2 * np.pi
    reach = rng.uniform(0.2, 0.48, 7)
    x, y = width * (0.5 + reach * np.cos(angles)), height * (0.5 + reach * np.sin(angles))
    shift = rng.uniform(-0.3, 0.3, 2) * (width, height)
    points = np.stack([(x + shift[0]).clip(0, width), (y + shift[1]).clip(0, height)], 1)
    return [round(value, 2) for value in points.ravel().tolist()]


def objects(number: int) -> list[dict[str, Any]]:
    """Two stars, one of two parts, a mask, a corner, a crowd, one that is too thin; none in image 3."""
    (height, width), rng = size_of(number), np.random.default_rng(number)
    if number == 3:
        return []
    found: list[dict[str, Any]] = []
    for label, parts in enumerate((1, 1, 2)):
        polygons = [polygon(rng, height, width) for _ in range(parts)]
        points = np.concatenate([np.array(part).reshape(-1, 2) for part in polygons])
        box = [*points.min(0).tolist(), *points.max(0).tolist()]
        found.append({"label": label, "box": box, "area": 50.0, "segmentation": polygons})
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[10:30, 20:50] = rng.random((20, 30)) < 0.5
    mask[10, 20] = mask[29, 49] = 1
    text = coco_mask.encode(mask)["counts"].decode()
    found.append(
        {
            "label": 5,
            "box": [20, 10, 50, 30],
            "area": 300,
            "segmentation": {"size": [height, width], "counts": text},
        }
    )
    corner = [[2, 1, 8, 1, 8, 9, 2, 9]]
    found.append({"label": 4, "box": [2, 1, 8, 9], "area": 48, "segmentation": corner})
    found.append(
        {
            "label": 1,
            "box": [0, 0, 9, 9],
            "area": 80,
            "iscrowd": 1,
            "segmentation": {"size": [height, width], "counts": [height * width]},
        }
    )
    found.append({"label": 1, "box": [0, 0, 0.5, 9], "area": 4, "segmentation": [[0, 0, 0.5, 0, 0.5, 9]]})
    return [{"id": 10 * number + i, "iscrowd": 0, **item} for i, item in enumerate(found)]


def values(number: int) -> dict[str, Any]:
    height, width = size_of(number)
    image = np.roll(smooth_image(height, width), number, 1)
    record = {"image_id": 100 + number, "file_name": f"{number}.jpg", "height": height, "width": width}
    return {"image": image, "annotations": record | {"objects": objects(number)}}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detection") / "train"
    names = tuple(f"class {label}" for label in range(CLASSES))
    source = Source(
        "pictures",
        "pictures",
        names,
        {"train": MadeSamples(values, np.arange(COUNT), 9000)},
        fields=IMAGE_AND_OBJECTS,
    )
    pack(source, "train", out, samples_per_shard=4, shuffle=False)
    return out


def members(number: int) -> dict[str, bytes]:
    """What packing stores of a picture."""
    found = values(number)
    return {
        name: CODECS[codec].encode(found[name])
        for name, codec in (("image", "image"), ("annotations", "objects"))
    }


def steps_of(number: int, key: DrawKey) -> tuple[Geometry, ...]:
    return MULTI_SCALE.steps(*size_of(number), key)


def image_slowly(number: int, key: DrawKey) -> np.ndarray:
    """Mirrored first, then resized by torch and rounded, cut, resized and rounded again."""
    steps = steps_of(number, key)
    pixels = np.asarray(Image.open(io.BytesIO(members(number)["image"])).convert("RGB"))
    pixels = pixels[:, ::-1] if steps[-1].mirrored else pixels
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).double()
    for step in steps:
        image = F.interpolate(image[None], step.resized, mode="bilinear")[0].add(0.5).floor()
        if step.window:
            top, left, height, width = step.window
            left = step.resized[1] - width - left if steps[-1].mirrored else left
            image = image[:, top : top + height, left : left + width]
    return image.numpy()


def mask_slowly(segmentation: Any, number: int, key: DrawKey) -> list[list[int]]:
    """pycocotools' mask, by one loop over the pixels of each step: the pixel that covers the centre."""
    height, width = size_of(number)
    found = segmentation
    if isinstance(segmentation, list):
        found = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    mask = coco_mask.decode(found).tolist()
    steps = steps_of(number, key)
    for step in steps:
        (h, w), (tall, wide) = (len(mask), len(mask[0])), step.resized
        mask = [
            [mask[(2 * i + 1) * h // (2 * tall)][(2 * j + 1) * w // (2 * wide)] for j in range(wide)]
            for i in range(tall)
        ]
        if step.window:
            top, left, height, width = step.window
            mask = [row[left : left + width] for row in mask[top : top + height]]
    return [row[::-1] for row in mask] if steps[-1].mirrored else mask


def box_slowly(box: list[float], number: int, key: DrawKey) -> list[float]:
    """Mirrored, scaled and clipped, cut, scaled and clipped, coordinate by coordinate."""
    height, width = size_of(number)
    x1, y1, x2, y2 = box
    steps = steps_of(number, key)
    if steps[-1].mirrored:
        x1, x2 = width - x2, width - x1
    for step in steps:
        tall, wide = step.resized
        x1, x2 = (min(max(x * wide / width, 0), wide) for x in (x1, x2))
        y1, y2 = (min(max(y * tall / height, 0), tall) for y in (y1, y2))
        height, width = tall, wide
        if step.window:
            top, left, height, width = step.window
            left = wide - width - left if steps[-1].mirrored else left
            x1, x2 = (min(max(x - left, 0), width) for x in (x1, x2))
            y1, y2 = (min(max(y - top, 0), height) for y in (y1, y2))
    return [x1, y1, x2, y2]


def masks_of(found: Mapping[str, Any]) -> list[np.ndarray]:
    """The bitmaps of the runs of an example."""
    height, width = found["image"].shape[-2:]
    ends = np.cumsum(found["mask_lengths"])
    parts = [
        found["mask_runs"][end - length : end]
        for end, length in zip(ends, found["mask_lengths"], strict=True)
    ]
    assert len(found["mask_runs"]) == sum(found["mask_lengths"])
    return [np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width) for runs in parts]


def test_views_are_those_of_slow_loops() -> None:
    cropped, lost, mirrored = 0, 0, 0
    for position in range(36):
        number, key = position % COUNT, DrawKey(SEED, position)
        found = VIEWS(members(number), key)
        steps = steps_of(number, key)
        cropped, mirrored = cropped + len(steps) - 1, mirrored + steps[-1].mirrored
        difference = np.abs(found["image"] - image_slowly(number, key))
        assert difference.max() <= 1 + (len(steps) > 1)  # ties in float32, rounded in each step
        assert (difference > 0).mean() < 0.02
        expected = [(item, box_slowly(item["box"], number, key)) for item in objects(number)[:5]]
        kept = [(item, box) for item, box in expected if box[2] > box[0] and box[3] > box[1]]
        lost += len(expected) - len(kept)
        assert found["labels"].tolist() == [item["label"] for item, _ in kept]
        assert found["boxes"].shape == (len(kept), 4)
        np.testing.assert_allclose(
            found["boxes"], np.array([box for _, box in kept]).reshape(-1, 4), atol=2e-4
        )
        for mask, (item, _) in zip(masks_of(found), kept, strict=True):
            assert mask.tolist() == mask_slowly(item["segmentation"], number, key)
    assert min(cropped, lost, mirrored) > 3


def test_masks_lie_in_their_boxes_within_a_pixel() -> None:
    """Of the image as it was annotated: that of the view times its scale."""
    objects_seen = 0
    for position in range(60):
        number, key = position % COUNT, DrawKey(SEED + 1, position)
        found = VIEWS(members(number), key)
        scale = np.ones(2)
        for step in steps_of(number, key):
            scale *= np.array(step.resized) / step.crop[2:]
        down, across = scale.clip(1)
        for mask, box in zip(masks_of(found), found["boxes"].tolist(), strict=True):
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert columns[0] >= box[0] - across
            assert rows[0] >= box[1] - down
            assert columns[-1] + 1 <= box[2] + across
            assert rows[-1] + 1 <= box[3] + down
            objects_seen += 1
    assert objects_seen > 80


def test_neither_ranks_nor_threads_nor_neighbours_change_a_sample(split: Path) -> None:
    def seen(ranks: int, rank: int, threads: int, micro: int) -> dict[int, list[torch.Tensor]]:
        sampling = TrainSampling(seed=SEED, global_batch_size=4, micro_batch_size=micro)
        options = StreamOptions(dp_rank=rank, dp_size=ranks, threads=threads)
        found = {}
        with TrainStream(split, sampling, VIEWS, options) as stream:
            for batch in islice(stream, 12 // ranks // micro):
                ends = {
                    name: batch[f"{name}_offsets"]
                    for name in ("boxes", "labels", "mask_runs", "mask_lengths")
                }
                for i, position in enumerate(batch.positions.tolist()):
                    rows = [batch[name][end[i] : end[i + 1]].clone() for name, end in ends.items()]
                    found[position] = [batch["image"][i].clone(), batch["image_size"][i].clone(), *rows]
        return found

    alone = seen(1, 0, 1, 1)
    together = seen(2, 0, 3, 2) | seen(2, 1, 2, 2)
    assert alone.keys() == together.keys() == set(range(12))
    for position, tensors in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, together[position], strict=True))
    dtypes = [tensor.dtype for tensor in alone[0]]
    assert dtypes == [torch.uint8, torch.int64, torch.float32, torch.int32, torch.int32, torch.int32]
    assert (
        sum(len(tensors[2]) == 0 for tensors in alone.values()) >= 1
    )  # an image without objects trains, too


def test_evaluation_gives_the_image_and_the_record_as_it_is_stored(split: Path) -> None:
    transform = ObjectImages(num_classes=CLASSES, short_side=60, long_side=110)
    with EvalStream(split, EvalSampling(batch_size=1), transform) as stream:
        for number, batch in enumerate(stream):
            height, width = size_of(number)
            scale = min(60 / min(height, width), 110 / max(height, width))
            size = int(height * scale + 0.5), int(width * scale + 0.5)
            assert batch["image_size"].tolist() == [list(size)]
            assert batch["image"].shape[2:] == tuple(-(-side // 32) * 32 for side in size)
            assert batch["image_id"].tolist() == [100 + number]
            assert batch["source_size"].tolist() == [[height, width]]
            assert json.loads(batch["annotations"].numpy().tobytes()) == values(number)["annotations"]
            pixels = torch.from_numpy(CODECS["image"].decode(members(number)["image"]).copy())
            theirs = F.interpolate(pixels.permute(2, 0, 1)[None].double(), size, mode="bilinear")
            assert (batch["image"][..., : size[0], : size[1]] - theirs).abs().max() <= 0.5 + 1e-4
    assert number == COUNT - 1


def test_boxes_alone_need_no_masks() -> None:
    stored = values(0)
    for item in stored["annotations"]["objects"]:
        item["segmentation"] = None
    both = {"image": members(0)["image"], "annotations": CODECS["objects"].encode(stored["annotations"])}
    without = ObjectViews(views=MULTI_SCALE, num_classes=CLASSES, masks=False)
    found = without(both, DrawKey(0, 5))
    assert found.keys() == without.collators.keys() == {"image", "boxes", "labels"}
    assert np.array_equal(found["boxes"], VIEWS(members(0), DrawKey(0, 5))["boxes"])
    with pytest.raises(DataError, match="has no segmentation, so no mask; train without masks"):
        VIEWS(both, DrawKey(0, 5))


def test_a_gray_image_has_three_equal_channels() -> None:
    gray = members(0) | {"image": CODECS["image"].encode(smooth_image(*size_of(0), 1))}
    for position in range(4):
        image = VIEWS(gray, DrawKey(0, position))["image"]
        assert image.shape[0] == 3
        assert (image[0] == image[1]).all()


@pytest.mark.parametrize("transform", [VIEWS, ObjectImages(num_classes=CLASSES)])
def test_bad_samples_are_named(transform: ObjectViews | ObjectImages) -> None:
    stored, other = members(0), members(1)
    with pytest.raises(DataError, match="annotations of 48 x 85 pixels for an image of 43 x 89; pack them"):
        transform(stored | {"annotations": other["annotations"]}, DrawKey(0, 0))
    record = values(0)["annotations"]
    record["objects"][2]["label"] = CLASSES
    body = CODECS["objects"].encode(record)
    with pytest.raises(DataError, match=r"object 2 has label 6; labels are 0 \.\.\. 5"):
        transform(stored | {"annotations": body}, DrawKey(0, 0))
    with pytest.raises(DataError, match="no JSON text"):
        transform(stored | {"annotations": b"x"}, DrawKey(0, 0))


def test_the_smallest_canvas_that_fits() -> None:
    canvases = SmallestOf(((800, 1344), (1344, 800), (1344, 1344)))
    assert canvases(800, 1199) == (800, 1344)
    assert canvases(801, 800) == (1344, 800)
    assert canvases(900, 900) == (1344, 1344)
    assert MultipleOf(32)(800, 1199) == (800, 1216)
    with pytest.raises(
        DataError, match="1400 x 20 pixels fit no canvas of 800 x 1344 pixels, .*add a larger"
    ):
        canvases(1400, 20)
    with pytest.raises(DataError, match="must be heights and widths"):
        SmallestOf(())
    with pytest.raises(DataError, match="short_side"):
        ObjectImages(num_classes=3, short_side=900, long_side=800)
