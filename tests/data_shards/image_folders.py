"""Small JPEGs, folders of them, and what a directory holds: what the tests of the writer start from."""

from pathlib import Path

import numpy as np
import simplejpeg

from data_shards.format.index import Manifest, read_index


def jpeg(number: int, height: int = 24, width: int = 32) -> bytes:
    """An image that no other number has."""
    noise = np.random.default_rng(number).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(noise.repeat(8, 0).repeat(8, 1)), quality=90)


def make_folder(root: Path, counts: dict[str, int], classes: int = 3) -> Path:
    """ROOT/SPLIT/class-C/N.jpg, label N mod `classes`; heights of 24 to 72 pixels."""
    for split, count in counts.items():
        for number in range(count):
            path = root / split / f"class-{number % classes}" / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number, 24 + 8 * (number % 7)))
    return root


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def samples_in(directory: Path) -> list[tuple[bytes, int]]:
    """Every sample of a split, as the webdataset library reads them."""
    import webdataset  # brings torch along, which spawned packers need not load

    tars = [str(directory / entry.name) for entry in Manifest.load(directory).shards]
    read = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    return [(next(s[k] for k in ("jpg", "png", "webp") if k in s), int(s["cls"])) for s in read]


def bodies_by_index(directory: Path) -> list[tuple[bytes, int]]:
    """Every sample of a split, cut out by its index alone."""
    found = []
    for entry in Manifest.load(directory).shards:
        tar = (directory / entry.name).read_bytes()
        index = read_index(directory / entry.index_name)
        found += [(tar[o : o + s], label) for (o, s, _), label in index.tolist()]
    return found


def by_key(directory: Path) -> dict[str, bytes]:
    """Image and label of every sample by its key."""
    import webdataset

    tars = [str(directory / entry.name) for entry in Manifest.load(directory).shards]
    read = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    return {sample["__key__"]: sample["jpg"] + sample["cls"] for sample in read}
