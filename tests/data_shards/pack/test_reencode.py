"""What is done to an image before it is packed."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.format.samples import BadSourceError
from data_shards.pack.reencode import Recipe, is_progressive, prepare, to_baseline
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.write import pack
from data_shards.verify.verify import verify
from tests.data_shards.image_folders import contents, jpeg, make_folder, samples_in

needs_jpegtran = pytest.mark.skipif(
    not shutil.which("jpegtran"), reason="apt-get install libjpeg-turbo-progs"
)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([127 + 100 * np.sin(x / 9), 2 * y + 3, x], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def test_a_sound_file_goes_in_as_it_is() -> None:
    for body in (saved("JPEG"), saved("JPEG", progressive=True), saved("PNG"), saved("JPEG", "CMYK")):
        assert prepare(body, Recipe()) is body


def test_the_short_side_is_made_shorter_and_never_longer() -> None:
    body = saved("JPEG", size=(90, 60), quality=95)
    small = prepare(body, Recipe(short_side=20, quality=90))
    assert simplejpeg.decode_jpeg_header(small) == (20, 30, "YCbCr", "420")
    expected = Image.open(io.BytesIO(body)).resize((30, 20), Image.Resampling.BICUBIC)
    by_pil = io.BytesIO()
    expected.save(by_pil, "JPEG", quality=90, subsampling="4:2:0")
    difference = np.abs(
        simplejpeg.decode_jpeg(small).astype(int) - np.asarray(Image.open(by_pil)).astype(int)
    )
    assert difference.max() <= 3
    for short_side in (60, 61):
        assert prepare(body, Recipe(short_side=short_side)) is body
    # 33 * 20 / 50 = 13.2
    assert simplejpeg.decode_jpeg_header(prepare(saved("PNG", size=(33, 50)), Recipe(short_side=13)))[:2] == (
        20,
        13,
    )
    gray = prepare(saved("JPEG", "L", size=(90, 60)), Recipe(short_side=20))
    assert simplejpeg.decode_jpeg_header(gray)[:3] == (20, 30, "Gray")


def test_progressive_is_told_by_its_frame() -> None:
    assert is_progressive(saved("JPEG", progressive=True))
    for body in (saved("JPEG"), saved("PNG"), b"", b"\xff\xd8", b"\xff\xd8\xff"):
        assert not is_progressive(body)


@needs_jpegtran
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_baseline_has_the_same_pixels(mode: str) -> None:
    body = saved("JPEG", mode, progressive=True)
    baseline = prepare(body, Recipe(baseline=True))
    assert not is_progressive(baseline)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(baseline))), np.asarray(Image.open(io.BytesIO(body)))
    )
    plain = saved("JPEG")
    assert prepare(plain, Recipe(baseline=True)) is plain


@needs_jpegtran
def test_what_jpegtran_refuses_stays_as_it_is() -> None:
    assert to_baseline(b"\xff\xd8 no more") == b"\xff\xd8 no more"


def test_without_jpegtran_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        DataError, match=r"jpegtran, which is not on PATH: apt-get install libjpeg-turbo-progs"
    ):
        Recipe(baseline=True)


def test_checks_differ_in_what_they_find() -> None:
    cut = saved("JPEG", size=(300, 300))[:-900]
    assert prepare(cut, Recipe(check="header")) is cut
    with pytest.raises(BadSourceError, match="undecodable"):
        prepare(cut, Recipe(check="decode"))
    for check in ("header", "decode"):
        with pytest.raises(BadSourceError, match="undecodable"):
            prepare(b"not an image", Recipe(check=check))
    assert prepare(b"not an image", Recipe(check="none")) == b"not an image"
    with pytest.raises(BadSourceError):  # whatever the check, what must be decoded must decode
        prepare(cut, Recipe(check="none", short_side=8))


def test_a_png_is_packed_under_its_own_ending(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", {"train": 5})
    (root / "train" / "class-0" / "0000.jpg").write_bytes(saved("PNG"))
    (root / "train" / "class-0" / "0003.jpg").write_bytes(saved("WEBP", lossless=True))
    pack(image_folder(root), "train", tmp_path / "out")
    assert verify(tmp_path / "out", decode=True).ok
    packed = [body for body, _ in samples_in(tmp_path / "out")]
    assert sorted(packed) == sorted(
        [saved("PNG"), saved("WEBP", lossless=True), *(jpeg(n, 24 + 8 * n) for n in (1, 2, 4))]
    )


def test_reencoding_is_the_same_for_any_workers_and_is_remembered(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 12}))
    for workers in (1, 2):
        out = tmp_path / str(workers)
        pack(source, "train", out, samples_per_shard=5, short_side=16, quality=80, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert Manifest.load(tmp_path / "1").writer.short_side == 16
    assert {min(simplejpeg.decode_jpeg_header(body)[:2]) for body, _ in samples_in(tmp_path / "1")} == {16}
    with pytest.raises(DataError, match="short_side: '16' there, '0' requested"):
        pack(source, "train", tmp_path / "1", samples_per_shard=5, quality=80)


@pytest.mark.parametrize(("option", "value"), [("quality", 0), ("short_side", -1), ("check", "all")])
def test_nonsense_is_refused(option: str, value: object) -> None:
    with pytest.raises(DataError, match=option):
        Recipe(**{option: value})
