"""The crop of a JPEG alone: bit for bit the full decode's, or left to it."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image import region
from data_shards.image.decode import decode_image
from data_shards.image.geometry import Crop, TrainTransform
from data_shards.image.pixels import decode_pixels, decode_region

built = pytest.mark.skipif(
    region.decode_in_c is None, reason=f"data_shards/image/region.c was not built: {region.REMEDY}"
)
SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def image(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Blocks of 5 pixels and noise, so that every edge and every pixel tells: (H, W, C) uint8."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 200, (height // 5 + 1, width // 5 + 1, channels))
    blocks = blocks.repeat(5, axis=0).repeat(5, axis=1)[:height, :width]
    return (blocks + generator.integers(0, 56, blocks.shape)).astype(np.uint8)


def jpeg(height: int, width: int, sampling: str, seed: int = 0) -> bytes:
    gray = sampling == "Gray"
    return simplejpeg.encode_jpeg(
        image(height, width, 1 if gray else 3, seed),
        quality=90,
        colorspace="GRAY" if gray else "RGB",
        colorsubsampling=sampling,
    )


def by_pil(**options: object) -> bytes:
    file = io.BytesIO()
    mode = options.pop("mode", "RGB")
    Image.fromarray(image(70, 90, 3, 1)).convert(str(mode)).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def crops(height: int, width: int, count: int, seed: int) -> Iterator[Crop]:
    """The whole, the four corners' pixels, and random rectangles."""
    yield Crop(0, 0, height, width)
    yield from (Crop(top, left, 1, 1) for top in (0, height - 1) for left in (0, width - 1))
    generator = np.random.default_rng(seed)
    for _ in range(count):
        (top, bottom), (left, right) = (
            np.sort(generator.integers(0, n, 2)).tolist() for n in (height, width)
        )
        yield Crop(top, left, bottom - top + 1, right - left + 1)


def cut(pixels: np.ndarray, crop: Crop) -> np.ndarray:
    return pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def assert_same(body: bytes, factor: int, count: int = 25) -> None:
    """Every rectangle is decoded alone, and is the full decode's."""
    full = decode_pixels(body, factor)
    for crop in crops(*full.shape[:2], count, seed=len(body)):
        pixels = region.decode(body, crop, factor)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, cut(full, crop), err_msg=f"{crop} of {full.shape}")


@built
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_rectangle_is_the_full_decodes(sampling: str, factor: int) -> None:
    for seed, (height, width) in enumerate([(96, 128), (97, 131), (63, 33), (130, 17), (8, 8), (11, 9)]):
        assert_same(jpeg(height, width, sampling, seed), factor)


@built
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("interval", [{"restart_marker_blocks": 3}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0"])
def test_restart_markers(sampling: str, interval: dict[str, int], factor: int) -> None:
    body = by_pil(subsampling=sampling, **interval)
    assert b"\xff\xd0" in body
    assert_same(body, factor)


@built
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_gray_with_any_sampling_factors(factor: int) -> None:
    body = bytearray(jpeg(61, 75, "Gray"))
    place = body.index(b"\xff\xc0") + 11  # of its one component; a lone component has no blocks to interleave
    assert body[place] == 0x11
    body[place] = 0x22
    assert_same(bytes(body), factor)


@built
def test_a_rectangle_that_reaches_out_of_the_image_is_refused() -> None:
    body = jpeg(40, 50, "420")
    assert region.decode(body, Crop(3, 5, 7, 11), 1).shape == (7, 11, 3)
    assert region.decode(body, Crop(34, 5, 7, 11), 1) is None
    assert region.decode(body, Crop(3, -1, 7, 11), 1) is None


def three_colours_of_their_own_size() -> bytes:
    body = bytearray(jpeg(64, 64, "420"))
    start = body.index(b"\xff\xc0")
    body[start + 14] = 0x21  # the second component twice as wide as the third: no sampling with a name
    return bytes(body)


OTHERS = {
    "progressive": by_pil(progressive=True),
    "CMYK": by_pil(mode="CMYK"),
    "tiny": jpeg(7, 40, "444"),
    "unusual sampling": three_colours_of_their_own_size(),
    "cut short": jpeg(64, 64, "420")[:-300],
    "without an end": jpeg(64, 64, "420")[:-2],
    "no JPEG": b"\x89PNG\r\n\x1a\n" + bytes(100) + b"\xff\xd9",
    "empty": b"",
}


@built
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_left_to_the_full_decode(name: str) -> None:
    assert region.decode(OTHERS[name], Crop(1, 1, 4, 4), 1) is None


def test_without_the_c_part_the_images_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [jpeg(97, 131, sampling) for sampling in SAMPLINGS] + [OTHERS["progressive"], OTHERS["CMYK"]]
    transform = TrainTransform(image_size=16)

    def images() -> list[np.ndarray]:
        return [decode_image(body, transform, DrawKey(5, p)) for body in bodies for p in range(12)]

    ours = images()
    monkeypatch.setattr(region, "decode_in_c", None)
    assert region.decode(bodies[0], Crop(0, 0, 4, 4), 1) is None
    for with_c, without in zip(ours, images(), strict=True):
        np.testing.assert_array_equal(with_c, without)


@built
@pytest.mark.parametrize("sampling", ["420", "444"])
def test_damage_is_judged_by_the_full_decode_or_not_met(sampling: str) -> None:
    """200 places flipped, 40 lengths: never a crash, and pixels or a DataError."""
    body, crop, outcomes = jpeg(64, 80, sampling), Crop(8, 8, 24, 40), set()
    places = np.random.default_rng(1).integers(2, len(body), 200).tolist()
    damaged = [body[:p] + bytes([body[p] ^ 1 << p % 8]) + body[p + 1 :] for p in places]
    damaged += [body[: len(body) * i // 40] for i in range(40)]
    for one in damaged:
        alone = region.decode(one, crop, 1)
        try:
            pixels = decode_region(one, crop)
            outcomes.add("alone" if alone is not None else "in full")
            assert pixels.shape[0] <= 24  # less where the flip made the image lower
        except DataError:
            outcomes.add("refused")
            assert alone is None
    assert outcomes >= {"alone", "refused"}


@built
def test_a_warning_above_the_crops_end_is_left_to_the_full_decode() -> None:
    body = bytearray(jpeg(128, 128, "420"))
    scan = body.index(b"\xff\xda")
    middle = scan + (len(body) - scan) // 2
    body[middle : middle + 2] = b"\xff\xc0"  # a marker where there is none: the data ends here, libjpeg warns
    assert region.decode(bytes(body), Crop(100, 0, 28, 128), 1) is None
    assert region.decode(bytes(body), Crop(0, 0, 32, 128), 1) is not None  # below: not read, so not seen


def test_threads_share_it() -> None:
    body = jpeg(200, 200, "420")
    full, wanted = decode_pixels(body), list(crops(200, 200, 100, seed=2))
    with ThreadPoolExecutor(4) as pool:
        for crop, pixels in zip(
            wanted, pool.map(lambda crop: decode_region(body, crop), wanted), strict=True
        ):
            np.testing.assert_array_equal(pixels, cut(full, crop))


@pytest.mark.slow
def test_an_installation_without_a_compiler_lacks_it_and_nothing_else(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    command += ["--build-temp", str(tmp_path / "temp")]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"CC": "/bin/false"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "_region" in done.stderr  # the warning
    assert not list(tmp_path.glob("lib/data_shards/_region*"))
