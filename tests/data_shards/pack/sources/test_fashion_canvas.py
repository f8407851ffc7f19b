"""Canvases: composed pixel by pixel, silhouettes against scipy, bytes of any worker, garments by split."""

from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.format.rng import fold
from data_shards.image.annotations import VOID
from data_shards.pack.sources.fashion_canvas import CanvasOptions, CanvasSamples, fashion_canvas
from data_shards.pack.sources.fashion_mnist import FASHION_CLASSES
from data_shards.pack.sources.garments import enlarge, reached, texture
from data_shards.pack.write import pack
from launcher.cli.program import run
from tests.data_shards.pack.sources.fashion_files import idx

SIDES = (40, 57)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 40 and 20 made-up garments: blobs with holes and soft rims; the training ones are darker."""
    from scipy import ndimage

    path = tmp_path_factory.mktemp("fashion")
    for prefix, count, top in (("train", 40, 120), ("t10k", 20, 255)):
        rng = np.random.default_rng(count)
        blobs = ndimage.gaussian_filter(rng.random((count, 28, 28)), (0, 3, 3))
        blobs = (blobs - np.quantile(blobs, 0.6, axis=(1, 2), keepdims=True)).clip(0)
        images = (blobs / blobs.max(axis=(1, 2), keepdims=True) * top).astype(np.uint8)
        images[::3, 8:20, 8:20], images[::3, 11:17, 11:17] = top, 0
        (path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return path


def canvases(directory: Path, split: str = "train", **options: object) -> CanvasSamples:
    source = fashion_canvas(directory, 30, 20, CanvasOptions(**({"sides": SIDES} | options)), seed=3)
    samples = source.splits[split]
    assert isinstance(samples, CanvasSamples)
    return samples


def test_silhouettes_are_scipys_filled_ones(directory: Path) -> None:
    from scipy import ndimage

    samples, holes = canvases(directory), 0
    for image in samples.garments.images[:20]:
        for side in (28, 41):
            gray, inside, rim = enlarge(image, side)
            filled = ndimage.binary_fill_holes(gray >= 16)
            assert np.array_equal(inside, filled)
            assert np.array_equal(rim, (gray > 0) & (gray < 16) & ~filled)
            holes += int((inside & (gray < 16)).sum())
    assert holes > 0


def test_what_is_reached_by_hand() -> None:
    free = np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    # the pixel at (1, 1) is enclosed, and so is (2, 2), which touches others at corners alone
    expected = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    assert np.array_equal(reached(free), expected)


@pytest.mark.parametrize("background", ["class", "void"])
def test_a_canvas_is_its_items_painted_one_over_the_other(directory: Path, background: str) -> None:
    """Each pixel by itself: the last item that covers it, and rims mixed with what is below."""
    samples, occluded = canvases(directory, background=background), 0
    for i in range(8):
        (height, width), items = samples.layout(i)
        image, mask = samples[i].values()
        assert image.shape == (height, width, 3)
        garments = [enlarge(samples.garments.images[item.number], item.place.height) for item in items]
        below = texture(fold(samples.key, i, 1), height, width).astype(int)
        for y in range(height):
            for x in range(width):
                pixel, label, covers = below[y, x].tolist(), 10 if background == "class" else VOID, 0
                for item, garment in zip(items, garments, strict=True):
                    row, column = y - item.place.top, x - item.place.left
                    if not (0 <= row < item.place.height and 0 <= column < item.place.width):
                        continue
                    gray = int(garment.gray[row, column])
                    colour = [int(part) * (gray + 32) // 287 for part in item.tint]
                    if garment.inside[row, column]:
                        pixel, label, covers = colour, int(samples.garments.labels[item.number]), covers + 1
                    elif garment.rim[row, column]:
                        pixel = [
                            (c * gray + p * (16 - gray)) // 16 for c, p in zip(colour, pixel, strict=True)
                        ]
                        label = VOID
                assert image[y, x].tolist() == pixel
                assert mask[y, x] == label
                occluded += covers > 1
    assert occluded > 0


def test_sizes_counts_and_tints_fill_their_ranges(directory: Path) -> None:
    samples = canvases(directory)
    layouts = [samples.layout(row) for row in range(400)]
    assert {side for size, _ in layouts for side in size} == set(range(40, 58))
    assert {len(items) for _, items in layouts} == {1, 2, 3, 4, 5}
    assert sum(height != width for (height, width), _ in layouts) > 300
    items = [item for _, items in layouts for item in items]
    assert {item.number for item in items} == set(range(40))
    # no class has a colour of its own: the mean tint of each is that of all, within 4.5 standard errors
    tints, labels = np.array([item.tint for item in items]), np.array([item.number % 10 for item in items])
    for label in range(10):
        own = tints[labels == label]
        assert (np.abs(own.mean(0) - 159.5) < 4.5 * 192 / np.sqrt(12 * len(own))).all()


def test_a_canvas_depends_on_seed_and_number_alone(directory: Path) -> None:
    samples = canvases(directory)
    some = samples.select(np.array([17, 4])).select(np.array([1]))
    assert len(some.garments.images) < len(samples.garments.images)
    for name in ("image", "mask"):
        assert np.array_equal(some[0][name], samples[4][name])
    assert some.describe(0) == "canvas 4"
    assert some.sizes().tolist() == [samples[4]["image"].nbytes + samples[4]["mask"].nbytes]
    other = fashion_canvas(directory, 30, 20, CanvasOptions(sides=SIDES), seed=4).splits["train"]
    assert not np.array_equal(other[0]["image"], samples[0]["image"])
    assert len({samples.digest, other.digest, canvases(directory, items=(1, 2)).digest, some.digest}) == 4


def test_training_and_validation_have_garments_of_their_own_split(directory: Path) -> None:
    train, val = canvases(directory), canvases(directory, "val")
    assert (train.garments.images.max(), val.garments.images.max()) == (120, 255)
    assert (train.garments.total, val.garments.total) == (40, 20)
    assert not np.array_equal(train[0]["image"], val[0]["image"])


def test_workers_pack_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    source = fashion_canvas(directory, 12, 6, CanvasOptions(sides=SIDES))
    digests = {
        pack(source, "train", tmp_path / str(workers), workers=workers, samples_per_shard=4).digest
        for workers in (1, 2)
    }
    assert len(digests) == 1
    manifest = Manifest.load(tmp_path / "1")
    assert manifest.classes == (*FASHION_CLASSES, "background")
    assert [(field.name, field.codec) for field in manifest.fields] == [
        ("image", "image"),
        ("mask", "label_image"),
    ]
    assert CanvasOptions(background="void").classes == FASHION_CLASSES


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sides": (8, 20)}, "--canvas-size"),
        ({"sides": (80, 64)}, "--canvas-size"),
        ({"items": (0, 3)}, "--canvas-items"),
        ({"background": "sky"}, "class or void"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], named: str, directory: Path) -> None:
    with pytest.raises(DataError, match=named):
        CanvasOptions(**options)
    with pytest.raises(DataError, match="--canvas-val"):
        fashion_canvas(directory, 3, 0)


def test_the_command_packs_what_its_options_say(directory: Path, tmp_path: Path) -> None:
    line = ["shards", "pack", "--source", "fashion-canvas", "--directory", str(directory), "--out"]
    options = ["--canvas-train", "6", "--canvas-val", "3", "--canvas-size", "40-57", "--canvas-items", "2"]
    options += ["--canvas-background", "void", "--seed", "5"]
    assert run([*line, str(tmp_path / "out"), *options]) == 0
    packed = Manifest.load(tmp_path / "out" / "train")
    wanted = fashion_canvas(
        directory, 6, 3, CanvasOptions(sides=SIDES, items=(2, 2), background="void"), seed=5
    )
    assert packed.digest == pack(wanted, "train", tmp_path / "own", seed=5).digest
    assert packed.writer is not None
    assert "canvases of 40-57 pixels, 2-2 each, background void, seed 5" in packed.writer.source
    with pytest.raises(DataError, match="--canvas-size is for --source fashion-canvas; leave it out"):
        run(["shards", "pack", "--source", "synthetic", "--out", str(tmp_path), "--canvas-size", "64"])
    with pytest.raises(SystemExit):
        run([*line, str(tmp_path / "x"), "--canvas-size", "big"])
