"""Find or fetch the four files of Fashion-MNIST, and read the idx-ubyte format they are in."""

import gzip
import hashlib
import logging
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from parallel.durable import atomic_write

logger = logging.getLogger(__name__)

PACKAGE = "dataset-fashion-mnist"
PACKAGE_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
TIMEOUT_S = 20
# MD5 of the published .gz files, from the README of zalandoresearch/fashion-mnist; Debian's differ.
PUBLISHED_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_splits(directory: str | Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, 28, 28) and labels (N,), both uint8, of the splits train and val; DataError without files.

    `directory` as that of `find_files`.
    """
    files = find_files(None if directory is None else Path(directory))
    splits = {}
    for split, prefix in (("train", "train"), ("val", "t10k")):
        images, labels = (
            read_idx(files[f"{prefix}-{kind}-ubyte"]) for kind in ("images-idx3", "labels-idx1")
        )
        if len(images) != len(labels):
            path = files[f"{prefix}-images-idx3-ubyte"]
            raise DataError(f"{path}: {len(images)} images but {len(labels)} labels; fetch the files again")
        splits[split] = images, labels
    return splits


def default_cache() -> Path:
    """Where downloads are kept."""
    return Path.home() / ".cache" / "swin-moe" / "fashion-mnist"


def find_files(directory: Path | None, cache: Path | None = None) -> dict[str, Path]:
    """The path of each of the four files, by its name without `.gz`.

    Only `directory` is searched if it is given; otherwise the Debian package, the cache and the public
    download, in this order. DataError when none of them gives the files.
    """
    if directory is not None:
        if files := files_in(directory):
            return files
        raise DataError(f"{directory}: lacks {', '.join(_missing(directory))} (plain or .gz); {_ways()}")
    cache = cache or default_cache()
    return files_in(PACKAGE_DIRECTORY) or files_in(cache) or download(cache)


def is_present() -> bool:
    """Whether the Debian package or the cache has the files."""
    return bool(files_in(PACKAGE_DIRECTORY) or files_in(default_cache()))


def files_in(directory: Path) -> dict[str, Path]:
    """The four files in `directory`, gzipped or not; empty unless all of them are there."""
    files = {name: path for name in PUBLISHED_MD5 if (path := _either(directory, name))}
    return files if len(files) == len(PUBLISHED_MD5) else {}


def _either(directory: Path, name: str) -> Path | None:
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def _missing(directory: Path) -> list[str]:
    return [name for name in PUBLISHED_MD5 if not _either(directory, name)]


def _ways() -> str:
    return (
        f"get it in one of three ways: (1) sudo apt-get install {PACKAGE}; "
        f"(2) download the four .gz files from {URL} and pass --directory; "
        "(3) run this command where the network reaches that address. "
        "For made-up images instead, ask for them: --source synthetic"
    )


def download(cache: Path) -> dict[str, Path]:
    """Download the published files to `cache`, MD5 checked; DataError with the other ways when that fails."""
    logger.info("downloading Fashion-MNIST from %s to %s", URL, cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for name, md5 in PUBLISHED_MD5.items():
            if not _either(cache, name):
                _download_one(f"{URL}{name}.gz", cache / f"{name}.gz", md5)
    except (OSError, HTTPException) as error:
        raise DataError(f"cannot download Fashion-MNIST to {cache} ({error}); {_ways()}") from error
    return files_in(cache)


def _download_one(url: str, path: Path, md5: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        body = response.read()
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise DataError(f"{url}: MD5 is {digest}, published is {md5}; a proxy may have answered. {_ways()}")
    atomic_write(path, body, sync="none")


def read_idx(path: Path) -> np.ndarray:
    """Read an idx-ubyte file, gzipped or not: uint8 of the shape in its header; DataError when it is damaged.

    Source: the format note at the end of http://yann.lecun.com/exdb/mnist: 00 00 08 ndim, ndim big-endian
    u32, bytes.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot read it ({error}); {_ways()}") from error
    ndim = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    shape = tuple(int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in range(1, ndim + 1))
    if not ndim or len(raw) != 4 + 4 * ndim + int(np.prod(shape)):
        raise DataError(f"{path}: not a complete idx-ubyte file ({len(raw)} bytes, shape {shape}); {_ways()}")
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * ndim).reshape(shape)
