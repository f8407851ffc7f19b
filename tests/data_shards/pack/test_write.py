"""The shards on the disk: what other programs read in them, and that the plan alone decides their bytes."""

import hashlib
import multiprocessing
import os
import re
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, IMAGE_AND_MASK
from data_shards.format.files import only_writer
from data_shards.format.index import MANIFEST_NAME, Manifest, check_shards, read_index
from data_shards.format.rng import Purpose, permutation
from data_shards.format.tar import header
from data_shards.pack.sources.registry import ArraySamples, Source, synthetic
from data_shards.pack.write import PLAN_NAME, pack
from tests.data_shards.conftest import PER_SHARD, SAMPLES


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_webdataset_reads_back_every_sample(source: Source, shards: Path) -> None:
    import webdataset

    tars = [str(shards / entry.name) for entry in Manifest.load(shards).shards]
    read = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    ranks = permutation(SAMPLES, Purpose.PACK, 7)
    assert [sample["__key__"] for sample in read] == [f"{i:08d}" for i in range(SAMPLES)]
    for sample, row in zip(read, ranks.tolist(), strict=True):
        wanted = source.splits["train"][row]
        assert sample["cls"] == str(wanted["label"]).encode()
        assert sample["jpg"] == simplejpeg.encode_jpeg(wanted["image"], quality=95, colorsubsampling="444")


@pytest.mark.parametrize(("name", "size"), [("00000000.jpg", 0), ("00001234.jpg", 700), ("a.cls", 8**11 - 1)])
def test_header_is_the_one_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    ours, theirs = header(name, size), info.tobuf(tarfile.USTAR_FORMAT)
    # tarfile also fills in the two device numbers (329 ... 344), which POSIX leaves open for plain files.
    assert ours[:148] == theirs[:148]
    assert ours[156:329] == theirs[156:329]
    assert tarfile.TarInfo.frombuf(ours, "ascii", "strict").size == size


def test_index_points_at_the_jpegs(shards: Path) -> None:
    index = read_index(shards / "000001.idx")
    with tarfile.open(shards / "000001.tar") as tar:
        jpegs = [member for member in tar if member.name.endswith(".jpg")]
        assert index["image"]["offset"].tolist() == [member.offset_data for member in jpegs]
        assert index["image"]["size"].tolist() == [member.size for member in jpegs]
        labels = [int(tar.extractfile(member.name.replace("jpg", "cls")).read()) for member in jpegs]
    assert index["label"].tolist() == labels


def test_manifest_says_what_is_on_the_disk(shards: Path) -> None:
    manifest = Manifest.load(shards)
    # 103 samples in shards of 20: five full ones and one of 3.
    assert manifest.samples_per_shard.tolist() == [20, 20, 20, 20, 20, 3]
    files = contents(shards)
    assert len(files) == 13  # six tars, six indices, the manifest: neither the plan nor a temporary
    for entry in manifest.shards:
        tar, index = files[entry.name], files[entry.index_name]
        assert (len(tar), len(index)) == (entry.bytes, 24 * entry.samples)
        assert hashlib.sha256(tar).hexdigest() == entry.sha256
        assert hashlib.sha256(index).hexdigest() == entry.index_sha256


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(
    source: Source, shards: Path, tmp_path: Path, workers: int
) -> None:
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7, workers=workers)
    assert contents(tmp_path) == contents(shards)


def test_another_seed_is_another_order_of_the_same_samples(
    source: Source, shards: Path, tmp_path: Path
) -> None:
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=8)
    checksums = []
    for directory in (shards, tmp_path):
        indices = [
            read_index(directory / entry.index_name)["image"]["xxh3"]
            for entry in Manifest.load(directory).shards
        ]
        checksums.append(np.concatenate(indices).tolist())
    assert checksums[0] != checksums[1]
    assert sorted(checksums[0]) == sorted(checksums[1])


def stop_after(shards_done: int):
    def progress(done: int, total: int) -> None:
        if done >= shards_done * PER_SHARD:
            raise KeyboardInterrupt

    return progress


def test_interrupted_pack_goes_on_and_gives_the_same_bytes(
    source: Source, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7, progress=stop_after(4))
    assert not (tmp_path / MANIFEST_NAME).exists()
    (tmp_path / ".000004.tar.999.tmp").write_bytes(b"half a shard")  # a dead temporary
    (tmp_path / "000000.idx").unlink()  # killed between a tar and its index
    damaged = bytearray((tmp_path / "000001.tar").read_bytes())
    damaged[600] ^= 1
    (tmp_path / "000001.tar").write_bytes(damaged)
    kept = (tmp_path / "000002.tar").stat().st_mtime_ns
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7)
    assert contents(tmp_path) == contents(shards)
    assert (tmp_path / "000002.tar").stat().st_mtime_ns == kept


def pack_slowly(out: Path) -> None:
    source = synthetic(SAMPLES, 11, num_classes=5, image_size=16, seed=3)
    pack(
        source,
        "train",
        out,
        samples_per_shard=PER_SHARD,
        seed=7,
        progress=lambda done, total: time.sleep(0.2),
    )


def test_killed_pack_goes_on_and_gives_the_same_bytes(source: Source, shards: Path, tmp_path: Path) -> None:
    victim = multiprocessing.get_context("spawn").Process(target=pack_slowly, args=(tmp_path,))
    victim.start()
    while not (tmp_path / "000001.idx").exists():
        time.sleep(0.01)
    with pytest.raises(DataError, match="another pack is writing here"):
        pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert not (tmp_path / MANIFEST_NAME).exists()
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7)
    assert contents(tmp_path) == contents(shards)


def test_finished_pack_is_returned_at_once(source: Source, tmp_path: Path) -> None:
    first = pack(source, "val", tmp_path, seed=7)
    shards_done: list[int] = []
    again = pack(source, "val", tmp_path, seed=7, progress=lambda done, total: shards_done.append(done))
    assert again == first
    assert shards_done == []


def test_finished_pack_that_lost_a_shard_is_mended(source: Source, tmp_path: Path) -> None:
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7)
    before = contents(tmp_path)
    (tmp_path / "000003.tar").unlink()
    pack(source, "train", tmp_path, samples_per_shard=PER_SHARD, seed=7)
    assert contents(tmp_path) == before


def test_another_plan_is_refused_finished_or_not(source: Source, tmp_path: Path) -> None:
    pack(source, "val", tmp_path / "a", seed=7)
    with pytest.raises(DataError, match=r"seed: '7' there, '8' requested.*pass another --out, or delete"):
        pack(source, "val", tmp_path / "a", seed=8)
    with pytest.raises(KeyboardInterrupt):
        pack(source, "train", tmp_path / "b", samples_per_shard=PER_SHARD, progress=stop_after(1))
    with pytest.raises(DataError, match="quality: '95' there, '90' requested"):
        pack(source, "train", tmp_path / "b", samples_per_shard=PER_SHARD, quality=90)
    (tmp_path / "b" / PLAN_NAME).unlink()
    with pytest.raises(DataError, match=r"holds 000000.tar but no pack.json"):
        pack(source, "train", tmp_path / "b", samples_per_shard=PER_SHARD)


def test_gray_colour_and_ready_made_images(tmp_path: Path) -> None:
    class Ready(ArraySamples):
        def __getitem__(self, i: int) -> dict[str, bytes | int]:
            return {"image": b"a finished JPEG", "label": 1}

        def select(self, rows: np.ndarray) -> "Ready":
            return Ready(self.images[rows], self.labels[rows])

    gray = ArraySamples(np.full((2, 5, 6), 77, np.uint8), np.array([0, 1]))
    source = Source("x", "x", ("a", "b"), {"gray": gray, "ready": Ready(gray.images, gray.labels)})
    for split in source.splits:
        pack(source, split, tmp_path / split, check="none")
    with tarfile.open(tmp_path / "gray" / "000000.tar") as tar:
        jpeg = tar.extractfile("00000000.jpg").read()
    assert simplejpeg.decode_jpeg_header(jpeg)[:3] == (5, 6, "Gray")
    with tarfile.open(tmp_path / "ready" / "000000.tar") as tar:
        assert tar.extractfile("00000001.jpg").read() == b"a finished JPEG"


def test_options_are_refused_with_their_values(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quality \(101\) must be in 1 ... 100"):
        pack(source, "val", tmp_path, quality=101)
    with pytest.raises(DataError, match=r"workers \(0\) must be at least 1"):
        pack(source, "val", tmp_path, workers=0)
    with pytest.raises(DataError, match="has train, val \\(got 'test'\\)"):
        pack(source, "test", tmp_path)
    with pytest.raises(DataError, match="val of synthetic has no samples"):
        pack(synthetic(1, 0, 1, 4), "val", tmp_path)
    bad = ArraySamples(np.zeros((1, 4, 4), np.uint8), np.array([2]))
    with pytest.raises(DataError, match="label 2 must be in 0 ... 1"):
        pack(Source("x", "x", ("a", "b"), {"val": bad}), "val", tmp_path)


def test_a_place_that_cannot_be_written_is_named(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/val: cannot write here \(Not a directory"):
        pack(source, "val", tmp_path / "file" / "val")


def test_a_full_disk_is_named(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="cannot write here .No space left on device"):
        pack(source, "val", tmp_path)


def test_one_writer_a_directory(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path),
        pytest.raises(DataError, match="another pack is writing here"),
        only_writer(tmp_path),
    ):
        pass
    with only_writer(tmp_path):
        pass  # free again


def test_check_shards_names_a_truncated_and_a_missing_one(source: Source, tmp_path: Path) -> None:
    manifest = pack(source, "train", tmp_path, samples_per_shard=PER_SHARD)
    check_shards(manifest, tmp_path)
    size = manifest.shards[2].bytes
    os.truncate(tmp_path / "000002.tar", size - 512)
    (tmp_path / "000004.idx").unlink()
    with pytest.raises(DataError) as caught:
        check_shards(manifest, tmp_path)
    assert f"000002.tar: expected {size} bytes, found {size - 512}" in str(caught.value)
    assert "000004.idx: No such file or directory, expected 480 bytes" in str(caught.value)  # 20 x 24
    assert "shards pack" in str(caught.value)


def test_a_missing_split_has_the_command_that_makes_it(tmp_path: Path) -> None:
    """By the name of the data set, else by the members that are wanted."""
    for place, wanted, options in (
        ("ade20k", IMAGE_AND_MASK, "--source ade20k --directory ADEChallengeData2016"),
        ("fashion-canvas", IMAGE_AND_MASK, "--source fashion-canvas"),
        ("fashion-mnist", IMAGE_AND_LABEL, "--source fashion-mnist"),
        ("mine", IMAGE_AND_LABEL, "--source folder --directory IMAGES"),
        (
            "mine",
            IMAGE_AND_MASK,
            "--source members --directory FOLDER --member image=images --member mask=masks:label_image",
        ),
    ):
        command = f"swin-moe shards pack {options} --out {tmp_path / place}"
        with pytest.raises(DataError, match=re.escape(command) + "$"):
            Manifest.load(tmp_path / place / "train", wanted)
    (tmp_path / "ade20k" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="so packing never finished .* --source ade20k"):
        Manifest.load(tmp_path / "ade20k" / "train", IMAGE_AND_MASK)


def test_manifest_errors_say_what_to_do(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such directory.*swin-moe shards pack --source"):
        Manifest.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no manifest.json, so packing never finished"):
        Manifest.load(tmp_path)
    manifest = pack(source, "val", tmp_path / "val")
    with pytest.raises(DataError, match=r"holds splits, not shards; name one of .*/val"):
        Manifest.load(tmp_path)
    path = tmp_path / "val" / MANIFEST_NAME
    for text, message in {
        "{": "cannot read it",
        "[]": "schema is None, this version reads 1 and 2",
        '{"schema": 3}': "schema is 3, this version reads 1 and 2",
        '{"schema": 1}': "not a manifest",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            Manifest.load(tmp_path / "val")
    assert replace(manifest, split="other").digest != manifest.digest
