"""Scenes: masks pixel by pixel, pycocotools on the JSON, kinds by number, the same bytes by any worker."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy import ndimage

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.image.rle import decode_mask
from data_shards.pack.coco_json import coco_json
from data_shards.pack.sources.fashion_mnist import FASHION_CLASSES
from data_shards.pack.sources.fashion_scenes import (
    CATEGORY_IDS,
    CROWD,
    CUT,
    EMPTY,
    GREY,
    ORDER,
    SceneOptions,
    SceneSamples,
    fashion_scenes,
)
from data_shards.pack.sources.garments import enlarge
from data_shards.pack.sources.packed import packed_samples, packed_source
from data_shards.pack.write import pack
from launcher.cli.program import run
from tests.data_shards.pack.sources.fashion_files import idx

COUNT = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of made-up garments, of a shape a class; all those of the odd classes have a hole."""
    path = tmp_path_factory.mktemp("fashion")
    for prefix, count in (("train", 70), ("t10k", 50)):
        labels = (np.arange(count) * 3 % 10).astype(np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 2 + label : 28 - label] = 60 + 15 * label  # from top to bottom
            image[10:14, 12:16] = 0 if label % 2 else 255
            image[: label // 2] = 0
        (path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return path


def scenes(directory: Path, split: str = "train", seed: int = 3, **options: object) -> SceneSamples:
    given = SceneOptions(**({"sides": (64, 90)} | options))  # type: ignore[arg-type]
    samples = fashion_scenes(directory, COUNT, 16, given, seed=seed).splits[split]
    assert isinstance(samples, SceneSamples)
    return samples


@pytest.fixture(scope="module")
def packed(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both splits by the command."""
    out = tmp_path_factory.mktemp("scenes")
    line = ["shards", "pack", "--source", "fashion-scenes", "--directory", str(directory), "--out", str(out)]
    options = ["--scenes-train", str(COUNT), "--scenes-val", "16", "--scenes-size", "64-90", "--seed", "3"]
    assert run([*line, *options, "--scenes-items", "1-6"]) == 0
    return out


def owners_slowly(samples: SceneSamples, row: int) -> np.ndarray:
    """Which annotation each pixel of a scene belongs to, pixel by pixel; -1 for none."""
    (height, width), placed = samples.layout(row)
    garments = [
        enlarge(samples.garments.images[item.number], item.place.height, item.place.width)
        for item, _, _ in placed
    ]
    owners = np.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            for (item, owner, _), garment in zip(placed, garments, strict=True):
                row, column = y - item.place.top, x - item.place.left
                if 0 <= row < item.place.height and 0 <= column < item.place.width:
                    owners[y, x] = owner if garment.inside[row, column] else owners[y, x]
    return owners


def test_masks_boxes_and_areas_are_those_of_the_visible_pixels(directory: Path) -> None:
    samples, hidden = scenes(directory, items=(9, 12)), 0
    for row in (0, 1, 2, 4, 10, 12):
        owners = owners_slowly(samples, row)
        record = CODECS["objects"].decode(CODECS["objects"].encode(samples[row]["annotations"]))
        found = {item.id - 100 * (row + 1): item for item in record.objects}
        _, placed = samples.layout(row)
        wanted = {owner for _, owner, _ in placed if (owners == owner).sum() >= 12}
        hidden += len({owner for _, owner, _ in placed}) - len(wanted)
        assert found.keys() == wanted
        for owner, item in found.items():
            mask = owners == owner
            assert np.array_equal(decode_mask(record.counts(item), *mask.shape), mask)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert item.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert item.area == mask.sum()
            number = next(one.item.number for one in placed if one.owner == owner)
            assert ORDER[item.label] == samples.garments.labels[number]
    assert hidden > 0


def test_the_number_of_a_scene_decides_its_kind(directory: Path) -> None:
    samples, parts, borders = scenes(directory), 0, set()
    for row in range(COUNT):
        image, record = samples[row].values()
        assert (image.ndim == 2) == (row % 16 in GREY)
        crowds = [item for item in record["objects"] if item["iscrowd"]]
        if row % 16 in EMPTY:
            assert record["objects"] == []
        assert len(crowds) <= (row % 16 in CROWD)
        for item in record["objects"]:
            x1, y1, x2, y2 = item["box"]
            borders |= {(x1 == 0, "left"), (y1 == 0, "top")}
            borders |= {(x2 == record["width"], "right"), (y2 == record["height"], "bottom")}
        if row % 16 in CUT:
            _, placed = samples.layout(row)
            owners = owners_slowly(samples, row)
            assert ndimage.label(owners == placed[-2].owner, np.ones((3, 3)))[1] >= 2
            parts += 1
    assert {name for touches, name in borders if touches} == {"left", "top", "right", "bottom"}
    assert parts == 4
    assert sum(bool(i["iscrowd"]) for r in range(COUNT) for i in samples[r]["annotations"]["objects"]) >= 2


def test_sizes_and_counts_fill_their_ranges(directory: Path) -> None:
    samples = scenes(directory)
    layouts = [samples.layout(row) for row in range(16, 816)]
    heights, widths = ({size[axis] for size, _ in layouts} for axis in (0, 1))
    assert heights == widths == set(range(64, 91))
    assert {len(placed) for size, placed in layouts} >= {0, 1, 2, 3, 4, 5, 6}
    assert any(height > width for (height, width), _ in layouts)
    assert any(height < width for (height, width), _ in layouts)


def test_real_sizes_have_small_and_large_objects(directory: Path) -> None:
    """At the default sizes there are objects below 32 x 32 and above 96 x 96 pixels, as COCO counts them."""
    samples = scenes(directory, sides=(128, 256))
    areas = [item["area"] for row in range(COUNT) for item in samples[row]["annotations"]["objects"]]
    assert min(areas) < 32**2 < np.median(areas) * 4
    assert max(areas) > 96**2


def test_a_scene_depends_on_seed_and_number_alone(directory: Path) -> None:
    samples = scenes(directory)
    some = samples.select(np.array([17, 4])).select(np.array([1]))
    assert len(some.garments.images) < len(samples.garments.images)
    assert np.array_equal(some[0]["image"], samples[4]["image"])
    assert some[0]["annotations"] == samples[4]["annotations"]
    assert (some.describe(0), some.label(0)) == ("scene 4", -1)
    assert some.sizes().tolist() == [samples[4]["image"].nbytes]
    other = scenes(directory, seed=4)
    assert not np.array_equal(other[0]["image"], samples[0]["image"])
    assert len({samples.digest, other.digest, scenes(directory, items=(1, 2)).digest, some.digest}) == 4
    val = scenes(directory, "val")
    assert (len(val.garments.labels), len(samples.garments.labels)) == (50, 70)


def test_pycocotools_reads_the_json_beside_the_shards(packed: Path, directory: Path) -> None:
    """Its masks are the pixels; category ids have gaps, and no order that sorting would keep."""
    assert sorted(CATEGORY_IDS) != list(range(1, 11))
    for split, count in (("train", COUNT), ("val", 16)):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(packed / "annotations" / f"instances_{split}.json")
        samples = scenes(directory, split)
        assert coco.getImgIds() == list(range(1, count + 1))
        for row in (0, 2, 4, 7):
            owners = owners_slowly(samples, row)
            assert coco.imgs[row + 1]["width"] == owners.shape[1]
            found = coco.loadAnns(coco.getAnnIds(imgIds=row + 1))
            assert [item["id"] for item in found] == [
                item["id"] for item in samples[row]["annotations"]["objects"]
            ]
            for item in found:
                mask = owners == item["id"] - 100 * (row + 1)
                assert np.array_equal(coco.annToMask(item), mask)
                left, top, width, height = item["bbox"]
                assert mask[int(top) : int(top + height), int(left) : int(left + width)].sum() == mask.sum()
                placed = samples.layout(row)[1]
                number = next(one.item.number for one in placed if 100 * (row + 1) + one.owner == item["id"])
                assert (
                    coco.cats[item["category_id"]]["name"] == FASHION_CLASSES[samples.garments.labels[number]]
                )
        assert [bool(found["iscrowd"]) for found in coco.anns.values()].count(True) >= 1


def test_tasks_and_their_merge_write_the_json(packed: Path, directory: Path, tmp_path: Path) -> None:
    line = ["shards", "pack", "--out", str(tmp_path)]
    options = [
        "--source",
        "fashion-scenes",
        "--directory",
        str(directory),
        "--samples-per-shard",
        "8",
        "--seed",
        "3",
    ]
    options += ["--scenes-train", str(COUNT), "--scenes-val", "16", "--scenes-size", "64-90"]
    for task in ("0/2", "1/2"):
        assert run([*line, *options, "--task", task]) == 0
    paths = [tmp_path / "annotations" / f"instances_{split}.json" for split in ("train", "val")]
    for path in paths:
        ours, theirs = (
            json.loads((root / "annotations" / path.name).read_text()) for root in (tmp_path, packed)
        )
        assert ours == theirs
    paths[0].unlink()
    assert run([*line, "--task", "merge", "--name", "mine"]) == 0
    assert all(path.is_file() for path in paths)


def test_workers_pack_the_same_bytes_and_ids_stay(packed: Path, directory: Path, tmp_path: Path) -> None:
    source = fashion_scenes(directory, COUNT, 16, SceneOptions(sides=(64, 90)), seed=3)
    digest = pack(source, "train", tmp_path / "two", workers=2, samples_per_shard=12, seed=3).digest
    assert digest == pack(source, "train", tmp_path / "one", samples_per_shard=12, seed=3).digest
    manifest = Manifest.load(packed / "train")
    assert manifest.category_ids == source.category_ids
    assert manifest.classes == tuple(FASHION_CLASSES[label] for label in ORDER)
    assert [(field.name, field.codec) for field in manifest.fields] == [
        ("image", "image"),
        ("annotations", "objects"),
    ]
    assert "128" not in manifest.writer.source
    assert "scenes of 64-90 pixels, 1-6 each, seed 3" in manifest.writer.source
    again = packed_source(packed)
    assert again.category_ids == manifest.category_ids
    assert pack(again, "train", tmp_path / "again").category_ids == manifest.category_ids
    assert coco_json(tmp_path / "again")["annotations"] == coco_json(packed / "train")["annotations"]
    assert len(packed_samples(packed / "val", Manifest.load(packed / "val"))) == 16


@pytest.mark.parametrize(
    "ids", [["1"] * 10, [1, 2], [1] * 10, "1"], ids=["texts", "too few", "one twice", "no list"]
)
def test_category_ids_that_are_none(packed: Path, tmp_path: Path, ids: object) -> None:
    values = json.loads((packed / "val" / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(values | {"category_ids": ids}))
    with pytest.raises(DataError, match="category_ids must be"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sides": (60, 80)}, "--scenes-size"),
        ({"sides": (80, 64)}, "--scenes-size"),
        ({"items": (0, 3)}, "--scenes-items"),
        ({"items": (1, 51)}, "--scenes-items"),
    ],
)
def test_nonsense_is_refused(options: dict[str, tuple[int, int]], named: str, directory: Path) -> None:
    with pytest.raises(DataError, match=named):
        SceneOptions(**options)
    with pytest.raises(DataError, match="--scenes-val"):
        fashion_scenes(directory, 3, 0)
    with pytest.raises(DataError, match="--scenes-size is for --source fashion-scenes; leave it out"):
        run(["shards", "pack", "--source", "synthetic", "--out", "x", "--scenes-size", "64"])
