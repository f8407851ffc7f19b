"""Segmentation in a stream: crops against decoding, resizing and cutting everything; images of any size."""

import io
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_MASK
from data_shards.format.rng import DrawKey, Purpose, uniform
from data_shards.format.samples import Source
from data_shards.image.annotations import VOID
from data_shards.image.resize_crop import ResizeCropTransform
from data_shards.order.sampling import TrainSampling
from data_shards.pack.write import pack
from data_shards.stream.collate import MultipleOf
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, StreamOptions
from data_shards.stream.pixel_labels import PixelLabelCrops, PixelLabelImages, class_ids
from data_shards.stream.train import TrainStream
from tests.data_shards.image.smooth_images import smooth_image
from tests.data_shards.made_samples import MadeSamples

COUNT, SEED, CLASSES = 11, 4, 5
CROPS = PixelLabelCrops(
    crop=ResizeCropTransform(image_size=(28, 36), long_side=120, short_side=40), num_classes=CLASSES
)


def pair(number: int) -> dict[str, np.ndarray]:
    """An image of a size of its own, and a mask with a void border and patches of all classes."""
    height, width = 41 + 3 * number, 77 - 2 * number
    rng = np.random.default_rng(number)
    patches = rng.integers(0, CLASSES, (height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)
    mask = patches[:height, :width].astype(np.uint8)
    mask[:3] = VOID
    return {"image": np.roll(smooth_image(height, width), number, 1), "mask": mask}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmentation") / "train"
    names = tuple(f"class {label}" for label in range(CLASSES))
    source = Source(
        "pairs", "pairs", names, {"train": MadeSamples(pair, np.arange(COUNT), 9000)}, fields=IMAGE_AND_MASK
    )
    pack(source, "train", out, samples_per_shard=4, shuffle=False)
    return out


def members(number: int) -> dict[str, bytes]:
    """What packing stores of a pair."""
    return {
        name: CODECS[codec].encode(pair(number)[name])
        for name, codec in (("image", "image"), ("mask", "label_image"))
    }


def crop_slowly(number: int, key: DrawKey) -> dict[str, np.ndarray]:
    """What `CROPS` gives, by decoding everything, torch's resize of everything, and cutting."""
    stored = members(number)
    pixels = np.asarray(Image.open(io.BytesIO(stored["image"])).convert("RGB"))
    labels = np.asarray(Image.open(io.BytesIO(stored["mask"])))
    height, width = labels.shape
    draws = key.draws(Purpose.SCALE_CROP)
    ratio = 0.5 + 1.5 * uniform(draws, 1)
    scale = min(int(120 * ratio) / max(height, width), int(40 * ratio) / min(height, width))
    h, w = int(height * scale + 0.5), int(width * scale + 0.5)
    image = F.interpolate(
        torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double(), (h, w), mode="bilinear"
    )[0]
    image = image.add(0.5).floor()
    mask = F.interpolate(torch.from_numpy(labels.copy())[None, None], (h, w), mode="nearest-exact")[0, 0]
    for attempt in range(11):
        top = int(uniform(draws, 2 + 2 * attempt) * (max(h - 28, 0) + 1))
        left = int(uniform(draws, 3 + 2 * attempt) * (max(w - 36, 0) + 1))
        cut = mask[top : top + 28, left : left + 36]
        ids, counts = cut[cut != VOID].unique(return_counts=True)
        if len(ids) > 1 and int(counts.max()) < 0.75 * int(counts.sum()):
            break
    image = image[:, top : top + 28, left : left + 36]
    if uniform(draws, 0) < 0.5:
        image, cut = image.flip(2), cut.flip(1)
    beyond = (0, 36 - cut.shape[1], 0, 28 - cut.shape[0])
    return {
        "image": F.pad(image, beyond).numpy(),
        "mask": F.pad(cut, beyond, value=VOID).numpy(),
        "size": np.array(cut.shape),
    }


def test_crops_are_those_of_decoding_resizing_and_cutting_everything(split: Path) -> None:
    sampling = TrainSampling(seed=SEED, global_batch_size=4, micro_batch_size=4)
    sizes = set()
    with TrainStream(split, sampling, CROPS) as stream:
        for batch in islice(stream, 10):
            shards, rows = stream.order.locate(batch.positions.numpy())
            assert (batch["image"].dtype, batch["mask"].dtype, batch["size"].dtype) == (
                torch.uint8,
                torch.uint8,
                torch.int32,
            )
            for row, (number, position) in enumerate(
                zip((4 * shards + rows).tolist(), batch.positions.tolist(), strict=True)
            ):
                expected = crop_slowly(number, DrawKey(SEED, position))
                assert np.array_equal(batch["mask"][row], expected["mask"])
                assert np.array_equal(batch["size"][row], expected["size"])
                difference = np.abs(batch["image"][row].numpy() - expected["image"])
                assert difference.max() <= 1  # a tie in float32, rounded
                assert (difference > 0).mean() < 0.01
                sizes.add(tuple(expected["size"].tolist()))
    assert (28, 36) in sizes
    assert len(sizes) > 3


def test_ranks_give_what_one_rank_gives(split: Path) -> None:
    def seen(ranks: int, rank: int) -> dict[int, torch.Tensor]:
        sampling = TrainSampling(seed=SEED, global_batch_size=4, micro_batch_size=2)
        options = StreamOptions(dp_rank=rank, dp_size=ranks)
        with TrainStream(split, sampling, CROPS, options) as stream:
            batches = list(islice(stream, 6 // ranks))
        return {p: b["image"][i].clone() for b in batches for i, p in enumerate(b.positions.tolist())}

    alone, together = seen(1, 0), seen(2, 0) | seen(2, 1)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[position], together[position]) for position in alone)


def test_evaluation_gives_each_image_at_its_own_size_and_the_mask_of_the_source(split: Path) -> None:
    transform = PixelLabelImages(
        num_classes=CLASSES, long_side=120, short_side=40, ratios=(1.0, 0.5, 1.75), mask_canvas=MultipleOf(32)
    )
    with EvalStream(split, EvalSampling(batch_size=1), transform) as stream:
        for number, batch in enumerate(stream):
            height, width = pair(number)["mask"].shape
            pixels = torch.from_numpy(CODECS["image"].decode(members(number)["image"]).copy())
            for name, ratio in (("image", 1.0), ("image_1", 0.5), ("image_2", 1.75)):
                scale = min(int(120 * ratio) / max(height, width), int(40 * ratio) / min(height, width))
                size = int(height * scale + 0.5), int(width * scale + 0.5)
                assert batch[name].shape == (1, 3, *size)
                assert batch[f"{name}_size"].tolist() == [list(size)]
                theirs = F.interpolate(pixels.permute(2, 0, 1)[None].double(), size, mode="bilinear")
                assert (batch[name] - theirs).abs().max() <= 0.5 + 1e-4
            assert batch["mask_size"].tolist() == [[height, width]]
            assert batch["mask"].shape == (1, -(-height // 32) * 32, -(-width // 32) * 32)
            assert np.array_equal(batch["mask"][0, :height, :width], pair(number)["mask"])
            assert (batch["mask"][0, height:] == VOID).all()
    assert number == COUNT - 1


def test_untouched_images_and_a_canvas_for_a_batch(split: Path) -> None:
    transform = PixelLabelImages(
        num_classes=CLASSES, long_side=None, short_side=None, canvas=(80, 96), mask_canvas=(80, 96)
    )
    with EvalStream(split, EvalSampling(batch_size=4), transform) as stream:
        batches = list(stream)
    assert [batch.weights.tolist() for batch in batches] == [[1.0] * 4, [1.0] * 4, [1.0] * 3 + [0.0]]
    for number in range(COUNT):
        batch, row = batches[number // 4], number % 4
        height, width = batch["image_size"][row].tolist()
        decoded = CODECS["image"].decode(members(number)["image"]).transpose(2, 0, 1)
        assert np.array_equal(batch["image"][row, :, :height, :width], decoded)
        assert (batch["image"][row, :, :, width:] == 0).all()
    assert batches[2]["mask_size"][3].tolist() == [0, 0]


def test_a_gray_image_has_three_equal_channels() -> None:
    gray = {"image": CODECS["image"].encode(smooth_image(41, 77, 1)), "mask": members(0)["mask"]}
    whole = PixelLabelImages(num_classes=CLASSES)(gray)["image"]
    crop = CROPS(gray, DrawKey(0, 0))["image"]
    assert whole.shape[0] == crop.shape[0] == 3
    assert all((image[0] == image[1]).all() and (image[0] == image[2]).all() for image in (whole, crop))


@pytest.mark.parametrize("transform", [CROPS, PixelLabelImages(num_classes=CLASSES)])
def test_bad_samples_are_named(transform: PixelLabelCrops | PixelLabelImages) -> None:
    stored, other = members(0), members(1)
    with pytest.raises(DataError, match="a label image of 44 x 75 pixels for an image of 41 x 77"):
        transform({"image": stored["image"], "mask": other["mask"]}, DrawKey(0, 0))
    beyond = pair(0)["mask"].copy()
    beyond[20, 20] = CLASSES
    with pytest.raises(DataError, match=r"id 5; the ids of classes are 0 \.\.\. 4, and 255"):
        transform(stored | {"mask": CODECS["label_image"].encode(beyond)}, DrawKey(0, 0))
    deep = pair(0)["mask"].astype(np.uint16)
    deep[deep == VOID] = 65535
    with pytest.raises(DataError, match="id 65535"):
        transform(stored | {"mask": CODECS["label_image"].encode(deep)}, DrawKey(0, 0))
    with pytest.raises(DataError, match="undecodable image"):
        transform(stored | {"mask": stored["image"]}, DrawKey(0, 0))


def test_labels_of_16_bits_are_taken_where_they_fit() -> None:
    labels = np.array([[0, 4, 255]], dtype=np.uint16)
    assert class_ids(labels, 5).dtype == np.uint8
    assert class_ids(labels, 5).tolist() == [[0, 4, 255]]


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (PixelLabelCrops, {"num_classes": 0}, "num_classes"),
        (PixelLabelCrops, {"num_classes": 256}, "num_classes"),
        (PixelLabelCrops, {"max_share": 0.0}, "max_share"),
        (PixelLabelCrops, {"redraws": -1}, "redraws"),
        (PixelLabelImages, {"num_classes": 300}, "num_classes"),
        (PixelLabelImages, {"ratios": ()}, "ratios"),
        (PixelLabelImages, {"ratios": (0.0,)}, "ratios"),
        (PixelLabelImages, {"long_side": None}, "both or neither"),
        (PixelLabelImages, {"long_side": 100}, "short_side"),
    ],
)
def test_nonsense_is_refused(kind: type, options: dict[str, Any], named: str) -> None:
    given = {"num_classes": 3} | ({"crop": CROPS.crop} if kind is PixelLabelCrops else {}) | options
    with pytest.raises(DataError, match=named):
        kind(**given)
