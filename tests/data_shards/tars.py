"""Tars of images and labels made by Python's tarfile, as other tools make them."""

import io
import tarfile
from pathlib import Path

from tests.data_shards.image_folders import jpeg

Member = tuple[str, bytes]


def make_tar(path: Path, members: list[Member], kind: int = tarfile.USTAR_FORMAT, padding: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(body), 1_600_000_000, "somebody"
            tar.addfile(info, io.BytesIO(body))
    path.write_bytes(path.read_bytes() + bytes(padding))


def image_label_pairs(numbers: range, suffix: str = "jpg", classes: int = 3) -> list[list[Member]]:
    return [[(f"k{n}.{suffix}", jpeg(n)), (f"k{n}.cls", b"%d" % (n % classes))] for n in numbers]


def flatten(groups: list[list[Member]]) -> list[Member]:
    return [member for group in groups for member in group]
