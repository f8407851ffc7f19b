"""Segmentation and detection in a stream: image, label image and boxes of a sample have one geometry."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_shards.codecs.registry import CODECS
from data_shards.format.fields import Members
from data_shards.format.rng import DrawKey
from data_shards.image.annotations import VOID, check_same_size, transform_boxes, transform_labels
from data_shards.image.decode import decode_geometries
from data_shards.image.keep_ratio import ScaleCropTransform, ShortSideTransform, draw_balanced
from data_shards.image.pixels import image_size
from data_shards.order.sampling import TrainSampling
from data_shards.pack.write import pack
from data_shards.stream.batch import Batch
from data_shards.stream.collate import Collator, Fixed, Padded, Ragged, image_tensor
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import Example, Transform, file_of
from tests.data_shards.member_sets import member_source, sample

COUNT, SEED, GRAY = 22, 3, (124, 116, 104)
SCALED = ScaleCropTransform(image_size=(20, 28), scale_range=(0.5, 2.0))
SHORT = ShortSideTransform(short_sides=range(12, 30), long_side=32)


@dataclass(frozen=True)
class Segmentation:
    """image (3, 20, 28) uint8 and labels (20, 28) uint16."""

    fields = ("image", "mask")
    collators: Mapping[str, Collator]

    def __call__(self, members: Members, key: DrawKey) -> Example:
        body, labels = file_of(members, "image"), CODECS["label_image"].decode(file_of(members, "mask"))
        check_same_size(labels, image_size(body))
        geometry = draw_balanced(SCALED, labels, key)
        (image,) = decode_geometries(body, [geometry], GRAY)
        return {"image": image, "labels": transform_labels(labels, geometry)}


@dataclass(frozen=True)
class Detection:
    """image of any size on a canvas of 32 x 32, boxes (N, 4) float32 in its pixels."""

    fields = ("image", "boxes")
    collators: Mapping[str, Collator]

    def __call__(self, members: Members, key: DrawKey) -> Example:
        body = file_of(members, "image")
        geometry = SHORT.geometry(*image_size(body), key)
        (image,) = decode_geometries(body, [geometry])
        boxes, keep = transform_boxes(boxes_in(members), geometry, min_side=1)
        return {"image": image, "boxes": boxes[keep]}


def boxes_in(members: Mapping[str, object]) -> np.ndarray:
    """(N, 4): the corners of made-up boxes in order."""
    found = members["boxes"]
    boxes = (CODECS["json"].decode(found) if isinstance(found, bytes) else found)["boxes"]
    return np.sort(np.array(boxes, dtype=float).reshape(-1, 2, 2), axis=1).reshape(-1, 4)


SEGMENTATION = Segmentation({"image": image_tensor((20, 28)), "labels": Fixed((20, 28), np.uint16)})
DETECTION = Detection(
    {"image": Padded((32, 32), 0, np.uint8, (3,), channels_last=True), "boxes": Ragged(np.float32, (4,))}
)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dense") / "train"
    pack(member_source(COUNT), "train", out, samples_per_shard=5, seed=SEED)
    return out


def batches(split: Path, transform: Transform) -> Iterator[tuple[Batch, list[tuple[int, DrawKey]]]]:
    """An epoch and some more: batches, and number and key of each of their samples."""
    numbers = {sample(number)["image"]: number for number in range(COUNT)}
    sampling = TrainSampling(seed=SEED, global_batch_size=4, micro_batch_size=4)
    with TrainStream(split, sampling, transform) as stream:
        for batch in islice(stream, 7):
            shards, rows = stream.order.locate(batch.positions.numpy())
            places = zip(shards.tolist(), rows.tolist(), strict=True)
            bodies = [stream.reader.read(*place, ["image"])["image"] for place in places]
            keys = [DrawKey(SEED, position) for position in batch.positions.tolist()]
            yield batch, list(zip((numbers[body] for body in bodies), keys, strict=True))


def test_a_segmentation_batch_has_labels_where_its_pixels_are(split: Path) -> None:
    padded = 0
    for batch, samples in batches(split, SEGMENTATION):
        assert batch["labels"].shape == (4, 20, 28)
        for row, (number, key) in enumerate(samples):
            values, labels = sample(number), batch["labels"][row].numpy()
            geometry = draw_balanced(SCALED, values["mask"], key)
            assert np.array_equal(labels, transform_labels(values["mask"], geometry))
            (image,) = decode_geometries(values["image"], [geometry], GRAY)
            assert np.array_equal(batch["image"][row].numpy(), image)
            beyond = np.ones((20, 28), dtype=bool)
            beyond[: geometry.resized[0], : geometry.resized[1]] = False
            assert (labels[beyond] == VOID).all()
            assert (image[:, beyond] == np.array(GRAY)[:, None]).all()
            padded += bool(beyond.any())
    assert 0 < padded < 28


def test_a_detection_batch_has_boxes_in_pixels_of_its_images(split: Path) -> None:
    sizes = set()
    for batch, samples in batches(split, DETECTION):
        assert batch["image"].shape == (4, 3, 32, 32)
        offsets = batch["boxes_offsets"].tolist()
        for row, (number, key) in enumerate(samples):
            values = sample(number)
            geometry = SHORT.geometry(24, 32, key)
            height, width = batch["image_size"][row].tolist()
            assert (height, width) == geometry.resized
            scaled = boxes_in(values) * (width / 32, height / 24, width / 32, height / 24)
            if geometry.mirrored:
                scaled[:, [0, 2]] = width - scaled[:, [2, 0]]
            large = ((scaled[:, 2:] - scaled[:, :2]) >= 1).all(1)
            ours = batch["boxes"][offsets[row] : offsets[row + 1]].numpy()
            np.testing.assert_allclose(ours, scaled[large], atol=1e-5)
            sizes.add((height, width, geometry.mirrored))
    assert len(sizes) > 10
