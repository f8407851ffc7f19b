"""Where images come from; Fashion-MNIST from a made-up directory of its format, never the network."""

import gzip
import hashlib
import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.pack.sources import fashion_mnist as fetching
from data_shards.pack.sources.registry import SOURCES, fashion_mnist, synthetic
from tests.data_shards.pack.sources.fashion_files import idx, write_files


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package, an empty cache and no network."""
    monkeypatch.setattr(fetching, "PACKAGE_DIRECTORY", tmp_path / "package")
    monkeypatch.setattr(fetching, "default_cache", lambda: tmp_path / "cache")

    def refuse(url: str, timeout: float) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path


def test_reads_the_files_of_a_directory(tmp_path: Path) -> None:
    write_files(tmp_path, {"train": 23, "t10k": 11})
    source = fashion_mnist(tmp_path)
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 23, "val": 11}
    image, label = source.splits["train"][17].values()
    assert (image.shape, image.min(), image.max(), label) == ((28, 28), 17, 17, 7)
    assert source.classes[7] == "Sneaker"
    assert source.splits["val"].select(np.array([10, 2]))[0]["label"] == 0


def test_digest_does_not_depend_on_the_place_or_compression(tmp_path: Path) -> None:
    bodies = write_files(tmp_path / "a", {"train": 23, "t10k": 11})
    (tmp_path / "b").mkdir()
    for name, body in bodies.items():
        (tmp_path / "b" / name).write_bytes(body)
    one, other = (fashion_mnist(tmp_path / side) for side in "ab")
    assert [s.digest for s in one.splits.values()] == [s.digest for s in other.splits.values()]
    assert one.description == other.description


def test_a_given_directory_is_the_only_place(tmp_path: Path) -> None:
    write_files(tmp_path, {"t10k": 11})
    with pytest.raises(
        DataError, match=r"lacks train-images-idx3-ubyte, train-labels-idx1-ubyte .*apt-get install"
    ):
        fashion_mnist(tmp_path)


def test_finds_the_package_then_the_cache(nowhere: Path) -> None:
    write_files(nowhere / "cache", {"train": 3, "t10k": 1})
    assert len(fashion_mnist().splits["train"]) == 3
    write_files(nowhere / "package", {"train": 5, "t10k": 1})
    assert len(fashion_mnist().splits["train"]) == 5


def test_downloads_checks_and_keeps_the_files(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {n: gzip.compress(b) for n, b in write_files(nowhere / "x", {"train": 6, "t10k": 2}).items()}
    monkeypatch.setattr(
        fetching, "PUBLISHED_MD5", {n: hashlib.md5(body).hexdigest() for n, body in files.items()}
    )

    def answer(url: str, timeout: float) -> io.BytesIO:
        assert timeout == 20
        return io.BytesIO(files[url.removeprefix(fetching.URL).removesuffix(".gz")])

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert len(fashion_mnist().splits["train"]) == 6
    assert sorted(path.name for path in (nowhere / "cache").iterdir()) == sorted(
        f"{name}.gz" for name in files
    )


def test_a_wrong_download_is_refused_and_not_kept(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>proxy</html>"))
    with pytest.raises(DataError, match="published is 8d4fb7e6c68d591d4c3dfef9ec88bf0d"):
        fashion_mnist()
    assert list((nowhere / "cache").iterdir()) == []


def test_without_any_way_it_names_all_three_and_makes_nothing_up(nowhere: Path) -> None:
    with pytest.raises(
        DataError, match=r"Network is unreachable.*\(1\) sudo apt-get.*\(2\) download.*\(3\) run"
    ):
        fashion_mnist()


@pytest.mark.parametrize("body", [b"", b"\x00\x00\x08", b"\x00\x00\x08\x01\x00\x00\x00\x05abc", b"<html>"])
def test_damaged_files_are_named(tmp_path: Path, body: bytes) -> None:
    write_files(tmp_path, {"train": 3, "t10k": 1})
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(body)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte: not a complete idx-ubyte file"):
        fashion_mnist(tmp_path)


def test_damaged_gzip_and_unequal_counts(tmp_path: Path) -> None:
    write_files(tmp_path, {"train": 3, "t10k": 1})
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match="1 images but 4 labels"):
        fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz: cannot read it"):
        fashion_mnist(tmp_path)


def test_synthetic_is_deterministic_and_learnable() -> None:
    """The nearest class mean of 200 training images, by colour alone, recognises most of the others."""
    source, again = (synthetic(200, 100, 4, 16, seed=1) for _ in range(2))
    train, val = source.splits["train"], source.splits["val"]
    assert source.name == "synthetic"
    image, label = train[9].values()
    assert (image.shape, image.dtype, label) == ((16, 16, 3), np.uint8, 1)
    np.testing.assert_array_equal(image, again.splits["train"].select(np.array([3, 9]))[1]["image"])
    assert not np.array_equal(image, val[9]["image"])
    assert train.digest != val.digest
    assert train.digest != synthetic(200, 100, 4, 16, seed=2).splits["train"].digest
    means = [np.mean([train[i]["image"].mean((0, 1)) for i in range(c, 200, 4)], axis=0) for c in range(4)]
    guesses = [
        np.argmin([np.abs(val[i]["image"].mean((0, 1)) - mean).sum() for mean in means]) for i in range(100)
    ]
    assert np.mean([guess == i % 4 for i, guess in enumerate(guesses)]) > 0.7


def test_sources_are_a_dictionary_and_refuse_nonsense() -> None:
    assert set(SOURCES) == {
        "ade20k",
        "coco",
        "fashion-canvas",
        "fashion-mnist",
        "fashion-scenes",
        "folder",
        "imagenet",
        "imagenet-zip",
        "imagenet22k",
        "kinetics",
        "members",
        "moving-fashion",
        "shards",
        "something-something",
        "synthetic",
    }
    with pytest.raises(DataError, match=r"--synthetic-classes \(0\) must be at least 1"):
        SOURCES["synthetic"](1, 1, 0, 8)
