import os
from pathlib import Path

import numpy as np
import pytest

from data_shards.format.index import Manifest, read_index
from data_shards.pack.sources.registry import ArraySamples, Source
from data_shards.pack.write import pack
from data_shards.verify.info import info
from data_shards.verify.verify import verify
from tests.data_shards.conftest import PER_SHARD, SAMPLES


@pytest.fixture
def copy(source: Source, tmp_path: Path) -> Path:
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7)
    return tmp_path


def flip(path: Path, offset: int) -> None:
    body = bytearray(path.read_bytes())
    body[offset] ^= 4
    path.write_bytes(body)


def test_sound_shards(shards: Path) -> None:
    seen = []
    report = verify(shards, decode=True, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert (report.ok, report.shards, report.samples, report.bad) == (True, 6, SAMPLES, ())
    assert report.bytes == sum((shards / f"00000{i}.tar").stat().st_size for i in range(6))
    assert seen[-1] == (SAMPLES, SAMPLES)


def test_flipped_bits_name_shard_and_key_and_hide_no_others(copy: Path) -> None:
    index = read_index(copy / "000002.idx")
    flip(copy / "000002.tar", int(index["image"]["offset"][5]) + 100)  # a body: key 2 * 20 + 5
    flip(copy / "000002.tar", int(index["image"]["offset"][9]) - 400)  # a header: it has no key any more
    flip(copy / "000002.tar", int(index["image"]["offset"][12]) - 512)  # the name in a header
    found = {(bad.shard, bad.key): bad.reason for bad in verify(copy).bad}
    assert found == {
        ("000002.tar", "*"): "SHA-256 differs from the manifest",
        ("000002.tar", "00000045"): "image: checksum differs from the index",
        ("000002.tar", "row 9"): "image: damaged tar header",
        ("000002.tar", "row 12"): "image: damaged tar header",
    }


def test_label_truncation_and_index_damage(copy: Path) -> None:
    index = read_index(copy / "000000.idx")
    flip(copy / "000000.tar", int(index["image"]["offset"][1]) - 1024)  # the label member of sample 0
    os.truncate(copy / "000001.tar", int(read_index(copy / "000001.idx")["image"]["offset"][19]) + 10)
    flip(copy / "000003.idx", 3)
    (copy / "000004.tar").unlink()
    found = [(bad.shard, bad.key, bad.reason.split()[0]) for bad in verify(copy, workers=3).bad]
    assert found == [
        ("000000.tar", "*", "SHA-256"),
        ("000000.tar", "00000000", "label:"),
        ("000001.tar", "*", "expected"),
        ("000001.tar", "00000039", "image:"),  # the tar ends inside this sample
        ("000001.tar", "*", "end-of-archive"),
        ("000003.idx", "*", "SHA-256"),
        ("000004.tar", "*", "[Errno"),
    ]


def test_decode_finds_what_checksums_cannot(tmp_path: Path, source: Source) -> None:
    class Broken(ArraySamples):
        def __getitem__(self, i: int) -> dict[str, bytes | int]:
            return {"image": b"not an image", "label": 0}

        def select(self, rows: np.ndarray) -> "Broken":
            return self

    broken = Broken(np.zeros((3, 1, 1), np.uint8), np.zeros(3, np.int64))
    pack(Source("x", "x", ("a",), {"val": broken}), "val", tmp_path, check="none")
    assert verify(tmp_path).ok
    assert [bad.key for bad in verify(tmp_path, decode=True).bad] == ["00000000", "00000001", "00000002"]


def test_info_counts(shards: Path) -> None:
    found = info(shards)
    assert found.samples_per_class.tolist() == [21, 21, 21, 20, 20]  # 103 samples, label = number mod 5
    assert found.manifest == Manifest.load(shards)
    assert found.bytes == verify(shards).bytes
