"""COCO's layout: masks and figures against pycocotools, what is left out, and all that may be wrong."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.image.rle import decode_mask
from data_shards.pack.coco_json import write_coco_json
from data_shards.pack.progress import read_bad
from data_shards.pack.sources.coco import coco
from data_shards.pack.sources.packed import packed_samples
from data_shards.pack.write import pack
from launcher.cli.program import run
from tests.data_shards.image.smooth_images import smooth_image

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
SIZES = {7: (40, 60), 2: (64, 48), 30: (50, 50), 11: (33, 70), 12: (70, 31)}  # height and width by image id
Change = Callable[[dict[str, Any]], Any]


def annotation(number: int, image: int, **values: Any) -> dict[str, Any]:
    base = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [4.25, 5.5, 12.5, 8.25],
        "area": 61.5,
        "iscrowd": 0,
        "segmentation": [[4.25, 5.5, 16.75, 6.0, 10.0, 13.75]],
    }
    return {key: value for key, value in (base | values).items() if value is not ...}


def instances() -> dict[str, Any]:
    """Five images; 30 has none but an unlisted category's sibling, 11 has a crowd alone, 12 is narrow."""
    height, width = SIZES[7]
    eye = coco_mask.encode(np.asfortranarray(np.eye(height, width, dtype=np.uint8)))["counts"].decode()
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width, "license": 1}
            for number, (height, width) in SIZES.items()
        ],
        "annotations": [
            annotation(101, 7),
            annotation(102, 2, category_id=90, bbox=[40, 60, 20, 10]),  # reaches beyond the image
            annotation(103, 7, category_id=3, segmentation={"size": [height, width], "counts": eye}),
            annotation(104, 11, iscrowd=1, segmentation={"size": [33, 70], "counts": [10, 300, 2000]}),
            annotation(105, 12),
            annotation(106, 7, bbox=[1, 1, 0.5, 3], area=0, segmentation=...),
            annotation(107, 999),  # of an image that is not listed
        ],
        "categories": deepcopy(CATEGORIES),
    }


def write(root: Path, change: Change = lambda found: None, zipped: str | None = None) -> Path:
    """A data set whose train is changed; its pictures in folders, or zipped with or without their folder."""
    (root / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        found = instances()
        if name == "train2017":
            changed = change(found)
            found = found if changed is None else changed
        text = found if isinstance(found, str) else json.dumps(found)
        (root / "annotations" / f"instances_{name}.json").write_text(text)
        (root / name).mkdir()
        for number, (height, width) in SIZES.items():
            path = root / name / f"{number:012d}.jpg"
            pixels = smooth_image(height, width)
            Image.fromarray(pixels).save(path, quality=90)
        if zipped is not None:
            with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
                for path in sorted((root / name).iterdir()):
                    archive.write(path, zipped.format(name) + path.name)
                    path.unlink()
            (root / name).rmdir()
    return root


def packed(root: Path, split: str = "train", **options: Any) -> dict[int, Any]:
    """The records of a packed split by their image ids."""
    out = root / "out" / split
    pack(coco(root, **options), split, out, samples_per_shard=3)
    samples = packed_samples(out, Manifest.load(out))
    records = [CODECS["objects"].decode(samples[i]["annotations"]) for i in range(len(samples))]
    return {record.image_id: record for record in records}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("coco") / "set")


def test_training_leaves_images_out_and_validation_does_not(root: Path) -> None:
    source = coco(root)
    assert source.classes == ("car", "person", "toothbrush")  # in the order of the file, whatever the ids
    assert source.category_ids == (3, 1, 90)
    train, val = packed(root), packed(root, "val")
    assert set(train) == {7, 2, 11}
    assert set(val) == set(SIZES)
    assert [(item.id, item.label, item.trains) for item in train[7].objects] == [
        (101, 1, True),
        (103, 0, True),
        (106, 1, False),
    ]
    assert train[7].objects[0].box == (4.25, 5.5, 16.75, 13.75)
    assert (train[11].objects[0].iscrowd, train[11].objects[0].trains) == (1, False)
    assert train[2].objects[0].box == (40, 60, 60, 70)  # not clipped
    assert (train[7].file_name, train[7].height, train[7].width) == ("000000000007.jpg", 40, 60)
    notes = " ".join(source.notes)
    assert "left out 1 training images with a side below 32 pixels" in notes
    assert "left out 1 training images without an annotation" in notes
    assert "skipped 1 annotations of images that are not in its list" in notes
    manifest = Manifest.load(root / "out" / "val")
    assert manifest.category_ids == (3, 1, 90)


def test_options_of_what_is_left_out(root: Path, tmp_path: Path) -> None:
    assert len(coco(root, keep_empty=True).splits["train"]) == 4
    assert len(coco(root, keep_empty=True, min_side=1).splits["train"]) == 5
    chosen = coco(root, classes=["toothbrush", "car"], splits=["train"])
    assert (chosen.classes, chosen.category_ids, list(chosen.splits)) == (
        ("car", "toothbrush"),
        (3, 90),
        ["train"],
    )
    samples = chosen.splits["train"]
    found = [samples[i]["annotations"] for i in range(len(samples))]
    assert [[(item["id"], item["label"]) for item in record["objects"]] for record in found] == [
        [(103, 0)],
        [(102, 1)],
    ]


def test_pycocotools_says_the_same_of_the_file_and_of_the_shards(root: Path) -> None:
    """Every annotation, its figures and its mask: of the file, of the record, of the JSON of the shards."""
    records = packed(root, "val")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(root / "annotations" / "instances_val2017.json")
        again = COCO(write_coco_json(root / "out" / "val"))
    assert again.cats == theirs.cats
    assert sorted(again.getImgIds()) == sorted(theirs.getImgIds())
    assert set(again.anns) == set(theirs.anns) - {107}
    for record in records.values():
        for item in record.objects:
            wanted = theirs.anns[item.id]
            assert again.anns[item.id] == {"iscrowd": 0} | wanted
            if "segmentation" in wanted:
                mask = decode_mask(record.counts(item), record.height, record.width)
                assert np.array_equal(mask, theirs.annToMask(wanted))


@pytest.mark.parametrize("inside", ["{}/", ""])
def test_zipped_pictures_give_the_samples_of_folders(root: Path, tmp_path: Path, inside: str) -> None:
    zipped = write(tmp_path / "zipped", zipped=inside)
    if (
        inside
    ):  # as COCO's own archives are: those of the pictures with their folder, the files in one archive
        with zipfile.ZipFile(zipped / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((zipped / "annotations").iterdir()):
                archive.write(path, f"annotations/{path.name}")
                path.unlink()
        (zipped / "annotations").rmdir()
    ours, theirs = (coco(place).splits["val"] for place in (zipped, root))
    assert len(ours) == len(theirs) == 5
    for i in range(5):
        assert ours[i] == theirs[i]
    part = ours.select(np.array([3, 1]))
    assert [part[i] for i in (0, 1)] == [theirs[3], theirs[1]]
    assert part.describe(0) == f"val2017.zip/{inside.format('val2017')}{11:012d}.jpg"
    assert ours.sizes().tolist() == theirs.sizes().tolist()
    assert min(ours.sizes()) > 0


def set_key(section: str, number: int, **values: Any) -> Change:
    def change(found: dict[str, Any]) -> None:
        item = found[section][number]
        item.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del item[key]

    return change


def first(**values: Any) -> Change:
    """Other values in annotation 101, of image 7."""
    return set_key("annotations", 0, **values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (first(bbox=[100, 5, 12, 8]), r"annotation 101: box \[100\.0, 5\.0, 112\.0, 13\.0\] "
         "lies outside of the image of 60 x 40 pixels; correct or remove it in the file"),
        (first(bbox=[4, 5, -12, 8]), r"annotation 101: bbox \[4, 5, -12, 8\] has a negative side"),
        (first(bbox=[4, 5, float("nan"), 8]), "bbox .*NaN.* is not finite"),
        (first(bbox=[4, 5, float("inf"), 8]), "is not finite"),
        (first(bbox=[4, "5", 12, 8]), "annotation 101: bbox is .*must be 4 numbers"),
        (first(bbox=None), "bbox is null"),
        (first(bbox=...), "annotation 101: it has no bbox"),
        (first(area=...), "it has no area"),
        (first(area="61"), "area is"),
        (first(category_id=4), "category_id 4 is none of the categories"),
        (set_key("annotations", 2, category_id=1.0), "annotation 103: category_id is an integer .* not 1.0"),
        (set_key("annotations", 2, category_id=...), "annotation 103: it has no category_id"),
        (first(id=101.0), "annotation 101.0: id is an integer"),
        (first(id=...), "annotation None: it has no id"),
        (first(iscrowd=3), "iscrowd is 0 or 1"),
        (first(segmentation=[[1, 1, 4, 4]]), "polygon of 4 numbers; x and y of 3 points"),
        (first(segmentation="x"), "segmentation is"),
        (first(segmentation={"size": [60, 40], "counts": [2400]}),
         r"run lengths of size \[60, 40\], where the image has \[40, 60\]"),
        (first(segmentation={"size": [40, 60], "counts": [24]}), "run lengths of 24 pixels"),
        (set_key("images", 0, height=60, width=40), "has 60 x 40 pixels there, and its picture 40 x 60"),
        (set_key("images", 0, height="40"), "has the height '40'"),
        (set_key("images", 0, width=...), "the width None"),
        (set_key("images", 0, file_name="gone.jpg"), "No such file.*image 7 names it: get it again"),
        (set_key("images", 0, file_name="../x.jpg"), "leaves the folder"),
        (set_key("images", 0, file_name=5), "has the file_name 5"),
    ],
)  # fmt: skip
def test_a_wrong_image_is_one_line_and_the_others_are_packed(
    change: Change, named: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "set", change)
    assert set(packed(root)) == {2, 11}
    (bad,) = read_bad(root / "out" / "train")
    assert bad.label == -1
    assert bad.reason.count("instances_train2017.json") == 1
    assert "image 7" in bad.reason
    with pytest.raises(DataError, match=named):
        raise DataError(bad.reason)


def turned(root: Path, orientation: int) -> None:
    """Tag the picture of image 7 in train; its pixels are as before."""
    path = root / "train2017" / f"{7:012d}.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)


def test_orientation_that_contradicts_the_file(tmp_path: Path) -> None:
    root = write(tmp_path / "set", set_key("images", 0, height=60, width=40))
    turned(root, 6)
    assert 7 not in packed(root)
    (bad,) = read_bad(root / "out" / "train")
    assert "60 x 40 pixels there, and its picture 40 x 60, which EXIF orientation 6 would turn" in bad.reason
    assert "turn the pixels and remove the tag" in bad.reason
    upright = write(tmp_path / "other")
    turned(upright, 6)
    assert 7 in packed(upright)  # the file speaks of the pixels as they are stored


def drop(section: str) -> Change:
    return lambda found: {key: value for key, value in found.items() if key != section}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda found: "", "it is empty"),
        (lambda found: "{}", "it has no images and no annotations and no categories; it must be"),
        (lambda found: "[]", "it is a JSON, but no object"),
        (lambda found: '"text"', "it is a JSON, but no object"),
        (lambda found: json.dumps(found)[:500], "no JSON, or is cut short"),
        (lambda found: "hello", "no JSON|no object"),
        (lambda found: '{"images": [1 2]}', "no JSON|no JSON object"),
        (lambda found: '{"info":' + "[" * 100_000, "no JSON"),
        (drop("images"), "it has no images; it must be"),
        (drop("annotations"), "it has no annotations"),
        (lambda found: found | {"images": {}}, "its images are no list"),
        (lambda found: found | {"images": []}, "its list of images is empty"),
        (lambda found: found | {"categories": []}, "its list of categories is empty"),
        (lambda found: found | {"annotations": [3]}, "number 0 of its annotations is no JSON object"),
        (set_key("images", 1, id=7), "several of its images have the id 7"),
        (set_key("images", 1, id=2.0), "number 1 of its images: id is an integer from 0 on, not 2.0"),
        (set_key("annotations", 1, id=101), "several of its annotations have the id 101; give each its own"),
        (set_key("annotations", 1, image_id="2"), 'annotation 102, .*: image_id is an integer .* not "2"'),
        (set_key("annotations", 1, image_id=...), "image_id is an integer"),
        (set_key("categories", 1, id=3), "several of its categories have the id 3"),
        (set_key("categories", 1, name="car"), "several categories are called 'car'"),
        (set_key("categories", 1, name=...), "category 1 has the name None"),
        (set_key("categories", 1, name="human"), "val2017.json must have the categories of inst"),
        (set_key("categories", 1, id=2), "other ids"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_as_a_whole_is_refused(change: Change, named: str, tmp_path: Path) -> None:
    root = write(tmp_path / "set", change)
    with pytest.raises(DataError, match=named) as caught:
        coco(root)
    assert "instances_" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_directories_that_lack_something(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no annotations/instances_train2017.json; --directory must be"):
        coco(tmp_path)
    with pytest.raises(DataError, match="--splits test: .* holds train, val"):
        coco(root, splits=["test"])
    with pytest.raises(DataError, match="--classes: .* has no category 'cat', but 'car', 'person'"):
        coco(root, classes=["cat"])
    (tmp_path / "annotations.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="annotations.zip: cannot read this zip archive"):
        coco(tmp_path)
    (tmp_path / "instances_val.json").write_text(json.dumps(instances()))
    (tmp_path / "instances_other.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds neither val/ nor val.zip, the images of instances_val.json"):
        coco(tmp_path)
    (tmp_path / "val").mkdir()
    assert "instances_other.json: not used, as no split is called so" in coco(tmp_path).notes[0]
    (tmp_path / "instances_val2014.json").write_text("{}")
    with pytest.raises(DataError, match="are both the split val; move one"):
        coco(tmp_path)


def test_the_command_packs_what_its_options_say(root: Path, tmp_path: Path) -> None:
    line = [
        "shards",
        "pack",
        "--source",
        "coco",
        "--directory",
        str(root),
        "--splits",
        "train",
        "--image-sizes",
    ]
    (tmp_path / "names.txt").write_text("person\n")
    options = ["--classes", str(tmp_path / "names.txt"), "--coco-min-side", "1", "--coco-keep-empty"]
    assert run([*line, "--out", str(tmp_path / "out"), *options]) == 0
    manifest = Manifest.load(tmp_path / "out" / "train")
    assert (manifest.samples, manifest.classes, manifest.category_ids) == (5, ("person",), (1,))
    assert [field.name for field in manifest.fields] == ["image", "annotations", "height", "width"]
    samples = packed_samples(tmp_path / "out" / "train", manifest)
    for i in range(5):
        record = CODECS["objects"].decode(samples[i]["annotations"])
        assert (samples[i]["height"], samples[i]["width"]) == (record.height, record.width)
    with pytest.raises(DataError, match="--coco-keep-empty is for --source coco; leave it out"):
        run(["shards", "pack", "--source", "synthetic", "--out", str(tmp_path), "--coco-keep-empty"])
