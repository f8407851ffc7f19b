"""ADE20K's layout, made up: reduced labels, names of classes, and one line for every kind of bad input."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.pack.sources.ade20k import ade20k, reduced_labels
from data_shards.pack.write import pack
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling
from data_shards.stream.pixel_labels import PixelLabelImages
from launcher.cli.program import run
from tests.data_shards.image.smooth_images import smooth_image

SIZE = (20, 30)
LABELS = np.arange(600).reshape(SIZE) % 151  # 0 ... 150
TABLE = """\
Idx\tRatio\tTrain\tVal\tName
1\t0.1576\t11664\t1172\twall
2\t0.1072\t6046\t612\tbuilding, edifice
3\t0.0878\t8265\t796\tsky
"""


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def write(root: Path, split: str, stem: str, label: bytes | None = None, image: bytes | None = None) -> None:
    for folder, suffix, body in (
        ("images", "jpg", CODECS["image"].encode(smooth_image(*SIZE)) if image is None else image),
        ("annotations", "png", png(LABELS.astype(np.uint8)) if label is None else label),
    ):
        path = root / folder / split / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, stems in (("training", "abc"), ("validation", "de")):
        for stem in stems:
            write(tmp_path / "ADEChallengeData2016", split, f"ADE_{stem}")
    return tmp_path / "ADEChallengeData2016"


def test_labels_are_reduced_and_packed(root: Path) -> None:
    source = ade20k(root.parent)  # the directory above, as the archive leaves it
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 3, "val": 2}
    assert source.classes == tuple(f"class {number}" for number in range(150))
    assert source.splits["train"].describe(1) == "images/training/ADE_b.jpg"
    manifest = pack(source, "val", root / "packed")
    assert (manifest.samples, manifest.bad_sources) == (2, 0)
    expected = [[(label - 1) % 256 for label in row] for row in LABELS.tolist()]  # 0 becomes 255
    transform = PixelLabelImages(num_classes=150, long_side=None, short_side=None)
    with EvalStream(root / "packed", EvalSampling(batch_size=1), transform) as stream:
        for batch in stream:
            assert batch["mask"][0].tolist() == expected
    assert reduced_labels(png(np.array([[255, 0, 1]], np.uint8)), 150).tolist() == [[255, 255, 0]]


def test_digest_and_splits(root: Path) -> None:
    names = root / "names.txt"
    names.write_text("a\nb\n")
    one, other = ade20k(root), ade20k(root, classes=names)
    assert one.splits["val"].digest != other.splits["val"].digest
    assert one.splits["val"].digest == ade20k(root, splits=["val"]).splits["val"].digest
    assert list(ade20k(root, splits=["val"]).splits) == ["val"]
    chosen = one.splits["train"].select(np.array([2]))
    assert (chosen.describe(0), chosen.label(0)) == ("images/training/ADE_c.jpg", -1)


def test_names_of_classes(root: Path, tmp_path: Path) -> None:
    (root / "objectInfo150.txt").write_text(TABLE)
    assert ade20k(root).classes == ("wall", "building", "sky")
    table = tmp_path / "object150_info.csv"
    table.write_text(
        "Idx,Ratio,Train,Val,Stuff,Name\n1,0.1,3,4,1,door;double door\n2,0.1,3,4,1,door;screen\n"
    )
    assert ade20k(root, classes=table).classes == ("door;double door", "door;screen")
    plain = tmp_path / "names.txt"
    plain.write_text("wall\n\nbuilding, edifice\n")
    assert ade20k(root, classes=plain).classes == ("wall", "building, edifice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ADE_train_00000001 airport_terminal\n", "it names the scenes of images, not classes"),
        ("a\na\n", "'a' stands for several labels"),
        ("", "0 names"),
        (TABLE.replace("2\t0.1", "7\t0.1"), r"row 2 is '7'.*; it must be 2, \.\.\., name"),
    ],
)
def test_files_without_names_are_refused(root: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"^--classes {path}: .*{message}"):
        ade20k(root, classes=path)


def bad_lines(root: Path) -> list[str]:
    """The lines on bad samples of the packed validation split, without their keys."""
    pack(ade20k(root), "val", root / "packed", max_bad=1.0)
    rows = (root / "packed" / "bad_sources.tsv").read_text().splitlines()
    return [row.split("\t", 1)[1] for row in rows if "ADE_bad" in row]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (png(LABELS[:, :29].astype(np.uint8)), "a label image of 20 x 29 pixels for an image of 20 x 30"),
        (png(np.full(SIZE, 151, np.uint8)), "label 151, where 0 is other and 1 ... 150 are classes"),
        (png(LABELS.astype(np.uint8), "P"), "a PNG with a palette"),
        (png(LABELS.astype(np.uint16)), "a PNG of 16 bits"),
        (png(np.zeros((*SIZE, 3), np.uint8)), "color type 2 of 8 bits"),
        (CODECS["image"].encode(smooth_image(*SIZE)), "a label image is a PNG"),
        (png(LABELS.astype(np.uint8))[:-40], "cut short or damaged"),
    ],
)
def test_a_bad_label_image_is_one_line_and_left_out(root: Path, label: bytes, message: str) -> None:
    write(root, "validation", "ADE_bad", label)
    (line,) = bad_lines(root)
    assert line.startswith("images/validation/ADE_bad.jpg\t")
    assert message in line


def test_a_bad_image_is_one_line_and_left_out(root: Path) -> None:
    write(root, "validation", "ADE_bad", image=b"\xff\xd8\xff not a JPEG")
    (line,) = bad_lines(root)
    assert "undecodable image" in line


def test_files_without_their_partner_are_refused(root: Path) -> None:
    (root / "annotations" / "training" / "ADE_b.png").unlink()
    with pytest.raises(DataError, match=r"1 samples have no mask in .*annotations/training: 'ADE_b'"):
        ade20k(root)
    (root / "images" / "training" / "ADE_b.jpg").unlink()
    (root / "images" / "validation" / "ADE_d.jpg").unlink()
    with pytest.raises(DataError, match=r"1 samples have no image in .*images/validation: 'ADE_d'"):
        ade20k(root)
    with pytest.raises(DataError, match="--source ade20k needs --directory"):
        ade20k(None)


def test_the_command_packs_both_splits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "names.txt").write_text("\n".join(f"name {number}" for number in range(150)))
    line = ["shards", "pack", "--source", "ade20k", "--directory", str(root), "--out", str(root / "out")]
    assert run([*line, "--classes", str(root / "names.txt")]) == 0
    assert "train: ade20k, 3 samples in 1 shard" in capsys.readouterr().out
    assert Manifest.load(root / "out" / "val").classes[149] == "name 149"
