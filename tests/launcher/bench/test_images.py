"""The images of a bench: synthetic ones, or the user's in their order, over and over."""

from pathlib import Path

import pytest

from data_shards.image.pixels import image_size
from launcher.bench.images import BenchImages, bench_images, made
from launcher.config.errors import ConfigError


def test_synthetic_images_are_jpegs_of_a_size_and_always_the_same() -> None:
    images = made(3, 40)
    assert [image_size(body) for body in images.bodies] == [(40, 40)] * 3
    assert len(set(images.bodies)) == 3
    assert made(3, 40) == images


def test_calls_start_again_with_the_first_image() -> None:
    images = BenchImages(names=("a", "b", "c"), bodies=(b"a", b"b", b"c"), text="")
    assert [b"".join(images.batch(2, number)) for number in range(4)] == [b"ab", b"ca", b"bc", b"ab"]
    assert b"".join(images.batch(7, 0)) == b"abcabca"


def test_files_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, body in enumerate(made(3, 16).bodies):
        (folder / f"{number}.jpg").write_bytes(body)
    images = bench_images([str(folder / "2.jpg"), str(folder)])
    assert [Path(name).name for name in images.names] == ["2.jpg", "0.jpg", "1.jpg", "2.jpg"]
    assert images.bodies[0] == images.bodies[3] == (folder / "2.jpg").read_bytes()
    assert images.text.startswith("4 images of --files, 0.")


@pytest.mark.parametrize("place", ["nothing.jpg", "broken.jpg"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(ConfigError, match=place):
        bench_images([str(tmp_path / place)])
