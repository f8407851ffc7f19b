"""Images of no allowed kind, damaged or of unknown range: one bad sample each, wherever a sample is read."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.pack.indexing import index_tars
from data_shards.pack.progress import read_bad
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.write import pack
from data_shards.verify.verify import verify
from tests.data_shards.image.image_files import saved, saved_array
from tests.data_shards.image_folders import jpeg
from tests.data_shards.streams import eval_stream, expected, seen, tiny_stream
from tests.data_shards.tiny_splits import write_split


def damaged_avif() -> bytes:
    body = saved("AVIF")
    at = body.index(b"mdat")
    return body[: at + 4] + b"\xff" * 8 + body[at + 12 :]


def flipped_png() -> bytes:
    body = bytearray(saved("PNG"))
    body[-30] ^= 1
    return bytes(body)


BAD = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop\nshowpage\n",
    "DDS": b"DDS " + bytes(124),
    "HTML": b"<html>503</html>",
    "AVIF": damaged_avif(),
    "AVIF without items": b"\0\0\0\x1cftypavif" + b"\0" * 4 + b"avifmif1" + b"\0" * 40,
    "PNG": flipped_png(),
    "GIF": saved("GIF", "P")[:-1],
    "TIFF of 32 bits": saved_array("TIFF", np.arange(256, dtype=np.int32).reshape(16, 16)),
    "TIFF of floats": saved_array("TIFF", np.full((16, 16), np.nan, np.float32)),
    "bomb": b"P6 60000 60000 255\n" + bytes(300),
}
ROWS = {5 + 9 * i: body for i, body in enumerate(BAD.values())}  # where they stand in the split
COUNT = 100


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split that was packed unlooked at."""
    out = tmp_path_factory.mktemp("bad") / "train"
    write_split(out, [ROWS.get(i, jpeg(i)) for i in range(COUNT)], [i % 3 for i in range(COUNT)], 20)
    return out


@pytest.mark.filterwarnings("ignore:quarantined")
def test_training_replaces_them(split: Path, tmp_path: Path) -> None:
    bodies = [ROWS.get(i, jpeg(i)) for i in range(COUNT)]
    stream = tiny_stream(split, quarantine=tmp_path / "quarantine.jsonl")
    assert seen(stream) == expected(stream, bodies, [i % 3 for i in range(COUNT)], set(ROWS))
    assert (tmp_path / "quarantine.jsonl").read_text().count("cannot be used: undecodable image") == len(ROWS)


def test_evaluation_names_the_first_one(split: Path) -> None:
    stream = eval_stream(split, batch_size=10)
    with (
        pytest.raises(DataError, match="sample 00000005 cannot be used: undecodable image of 66 bytes"),
        stream,
    ):
        list(stream)


def test_verify_names_all_of_them(split: Path) -> None:
    bad = verify(split, decode=True).bad
    assert [int(sample.key) for sample in bad] == list(ROWS)
    assert all(sample.reason.startswith("image: undecodable image of ") for sample in bad)


def test_pack_lists_all_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "train" / "c"
    folder.mkdir(parents=True)
    for i in range(COUNT):
        (folder / f"{i:03d}.jpg").write_bytes(ROWS.get(i, jpeg(i)))
    manifest = pack(image_folder(tmp_path / "in"), "train", tmp_path / "out", samples_per_shard=20)
    assert (manifest.samples, manifest.bad_sources) == (COUNT - len(ROWS), len(ROWS))
    assert sorted(Path(bad.source).stem for bad in read_bad(tmp_path / "out")) == [f"{i:03d}" for i in ROWS]
    assert verify(tmp_path / "out", decode=True).ok


def test_index_lists_all_of_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i in range(COUNT):
            for name, body in ((f"{i:03d}.jpg", ROWS.get(i, jpeg(i))), (f"{i:03d}.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    indexed = index_tars(tmp_path)
    assert [int(bad.key) for bad in indexed.bad] == list(ROWS)
    assert indexed.manifest.samples == COUNT - len(ROWS)
