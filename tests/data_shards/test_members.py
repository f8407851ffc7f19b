"""A data set of many members: packed, killed, indexed again, damaged, mended, split, read."""

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, Field
from data_shards.format.index import MANIFEST_NAME, Manifest, read_index
from data_shards.format.rng import Purpose, permutation
from data_shards.image.pixels import image_size
from data_shards.pack.indexing import IndexOptions, index_tars
from data_shards.pack.sources.packed import packed_source
from data_shards.pack.split import split_off
from data_shards.pack.write import pack
from data_shards.storage.base import LocalFile
from data_shards.stream.reader import SampleError, ShardReader
from data_shards.verify.info import info
from data_shards.verify.repair import repair
from data_shards.verify.verify import verify
from tests.data_shards.image_folders import contents, jpeg
from tests.data_shards.member_sets import CLASSES, FIELDS, FILES, MemberSamples, member_source, sample
from tests.data_shards.tars import make_tar

COUNT, PER_SHARD, SEED = 22, 5, 3
RANKS = permutation(COUNT, Purpose.PACK, SEED).tolist()


def write(out: Path, slow_s: float = 0.0) -> Manifest:
    options = {"samples_per_shard": PER_SHARD, "seed": SEED}
    return pack(member_source(COUNT), "train", out, progress=lambda *_: time.sleep(slow_s), **options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("members") / "train"
    write(out)
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def assert_is(members: dict[str, bytes | int], number: int) -> None:
    """Every member decodes to what the source gave."""
    for name, value in sample(number).items():
        codec = CODECS[next(field.codec for field in FIELDS if field.name == name)]
        found = members[name]
        if isinstance(found, bytes) and not isinstance(value, bytes):
            found = codec.decode(found)
        np.testing.assert_array_equal(found, value)


def test_every_member_is_read_back_whole_and_alone(packed: Path) -> None:
    manifest = Manifest.load(packed)
    assert (manifest.schema, [field.name for field in manifest.fields]) == (2, [f.name for f in FIELDS])
    reader = ShardReader(packed, manifest)
    for position, number in enumerate(RANKS):
        place = divmod(position, PER_SHARD)
        members = reader.read(*place)
        assert list(members) == [field.name for field in FIELDS]
        assert_is(members, number)
        for name in members:
            assert reader.read(*place, [name]) == {name: members[name]}
        assert reader.read(*place, ["points", "count", "image"]) == {
            name: members[name] for name in ("points", "count", "image")
        }
    assert reader.read(0, 1, ["count"]) == {"count": sample(RANKS[1])["count"]}
    assert reader.read(0, 1, []) == {}
    assert reader.numbers(0, "count").tolist() == [sample(n)["count"] for n in RANKS[:PER_SHARD]]
    assert reader.labels(1).tolist() == [n % 3 for n in RANKS[PER_SHARD : 2 * PER_SHARD]]
    with pytest.raises(DataError, match=r"no member 'clip', but image, mask, .*; pack or index"):
        reader.check_members(["image", "clip"])
    with pytest.raises(DataError, match="image is no number"):
        reader.numbers(0, "image")


def test_neighbouring_members_take_one_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def member(self: LocalFile, offset: int, size: int) -> tuple[bytes, bytes]:
        reads.append(size)
        return plain(self, offset, size)

    plain = LocalFile.member
    monkeypatch.setattr(LocalFile, "member", member)
    reader = ShardReader(packed, Manifest.load(packed))
    record = read_index(packed / "000000.idx", reader.manifest.fields)[2]
    reader.read(0, 2)
    reader.read(0, 2, ["mask"])
    ends = record["points"]["offset"] + record["points"]["size"]
    assert reads == [ends - record["image"]["offset"], record["mask"]["size"]]


def test_webdataset_reads_every_member(packed: Path) -> None:
    import webdataset

    tars = [str(packed / entry.name) for entry in Manifest.load(packed).shards]
    for read, number in zip(webdataset.WebDataset(tars, shardshuffle=False), RANKS, strict=True):
        names = {"jpg": "image", "mask.png": "mask", "boxes.json": "boxes", "points.npy": "points"}
        members = {name: read[extension] for extension, name in names.items()}
        assert_is(members | {"label": int(read["cls"]), "count": int(read["count.cls"])}, number)


def test_killed_and_resumed_it_has_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    victim = multiprocessing.get_context("spawn").Process(target=write, args=(out, 0.3))
    victim.start()
    while not (out / "000001.idx").exists():
        time.sleep(0.01)
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    assert not (out / MANIFEST_NAME).exists()
    kept = (out / "000000.tar").stat().st_mtime_ns
    write(out)
    assert contents(out) == contents(packed)
    assert (out / "000000.tar").stat().st_mtime_ns == kept


def test_indexed_again_from_its_tars_it_has_the_same_index(packed: Path, tmp_path: Path) -> None:
    options = IndexOptions(fields=FIELDS, classes=CLASSES)
    done = index_tars(packed, tmp_path / "out", options)
    for entry in done.manifest.shards:
        assert (tmp_path / "out" / entry.index_name).read_bytes() == (packed / entry.index_name).read_bytes()
    assert verify(tmp_path / "out", decode=True).ok
    (tmp_path / "out" / "000002.idx").unlink()
    assert repair(tmp_path / "out").reindexed == ("000002.idx",)


@pytest.mark.parametrize("name", FILES)
def test_damage_in_a_member_is_named_and_mended(packed: Path, copy: Path, name: str) -> None:
    record = read_index(copy / "000001.idx", FIELDS)[3]
    body = bytearray((copy / "000001.tar").read_bytes())
    body[int(record[name]["offset"]) + int(record[name]["size"]) - 1] ^= 4
    (copy / "000001.tar").write_bytes(body)
    found = [tuple(bad) for bad in verify(copy).bad]
    assert found[1:] == [("000001.tar", "00000008", f"{name}: checksum differs from the index")]
    reader = ShardReader(copy, Manifest.load(copy))
    others = [other for other in FILES if other != name]
    assert list(reader.read(1, 3, others)) == others  # a task that does not need it reads on
    with pytest.raises(
        SampleError, match=rf"sample 00000008 at byte \d+ \(\d+ bytes of {name}\) fails"
    ) as bad:
        reader.read(1, 3)
    assert bad.value.fields()["member"] == name
    dropped = repair(copy, drop_to=copy.parent / "new").dropped
    assert [(b.key, b.reason) for b in dropped] == [("00000008", f"{name}: checksum differs from the index")]
    assert verify(copy.parent / "new", decode=True).ok
    assert Manifest.load(copy.parent / "new").samples == COUNT - 1
    assert repair(copy, source=member_source(COUNT)).rewritten == ("000001.tar",)
    assert contents(copy) == contents(packed)


def test_damaged_numbers_headers_and_indices_are_named_and_mended(packed: Path, copy: Path) -> None:
    body = bytearray((copy / "000000.tar").read_bytes())
    record = read_index(copy / "000000.idx", FIELDS)[0]
    after = int(record["points"]["offset"]) + -(-int(record["points"]["size"]) // 512) * 512
    body[after + 512] ^= 1  # the digits of the label
    body[int(record["mask"]["offset"]) - 512] ^= 1
    (copy / "000000.tar").write_bytes(body)
    (copy / "000003.idx").unlink()
    found = {(b.shard, b.key): b.reason for b in verify(copy).bad}
    reason = found["000000.tar", "00000000"]
    assert reason.startswith("mask: damaged tar header; label: member 00000000.cls holds b'")
    assert ("000003.idx", "*") in found or ("000003.tar", "*") in found
    done = repair(copy, source=member_source(COUNT))
    assert (done.reindexed, done.rewritten) == (("000003.idx",), ("000000.tar",))
    assert contents(copy) == contents(packed)


def test_another_source_or_other_members_are_refused(copy: Path) -> None:
    (copy / "000000.tar").unlink()
    with pytest.raises(DataError, match="this source has other members"):
        repair(copy, source=replace(member_source(COUNT), fields=FIELDS[:-1]))


def test_damaged_indices_raise_data_errors_alone(copy: Path) -> None:
    """As for version 1: whatever the index holds, reading gives the sample or a DataError."""
    manifest, rng = Manifest.load(copy), np.random.default_rng(0)
    path = copy / "000000.idx"
    whole = path.read_bytes()
    for _ in range(60):
        body = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        body[rng.integers(len(body))] ^= 1 << rng.integers(8)
        path.write_bytes(body)
        assert not verify(copy).ok
        with pytest.raises(DataError, match=r"000000\.idx: is not the index in the manifest"):
            ShardReader(copy, manifest).read(0, 0)


def test_split_and_packed_again_the_members_stay(packed: Path, tmp_path: Path) -> None:
    made = split_off(packed, tmp_path / "split", 2)
    # 22 samples of 3 classes: two of each for validation
    assert (made["train"].samples, made["val"].samples) == (16, 6)
    pack(packed_source(packed), "train", tmp_path / "again", samples_per_shard=7)
    seen = []
    for split in ("split/train", "split/val", "again"):
        manifest = Manifest.load(tmp_path / split)
        assert manifest.fields == Manifest.load(packed).fields
        reader = ShardReader(tmp_path / split, manifest)
        for shard, entry in enumerate(manifest.shards):
            for row in range(entry.samples):
                members = reader.read(shard, row)
                count = int(members["count"])
                number = -count if count <= 0 and count % 2 else abs(count) % 2**40
                assert_is(members, number)
                seen.append(number)
        assert verify(tmp_path / split, decode=True).ok
    assert sorted(seen) == sorted([*range(COUNT)] * 2)


def test_info_counts_every_member(packed: Path) -> None:
    found = info(packed)
    assert list(found.sizes) == list(FILES)
    assert found.samples_per_class.tolist() == [8, 7, 7]
    text = "\n".join(found.lines())
    assert "boxes: " in text
    assert "numbers in the index: count" in text


def test_sizes_of_images_are_recorded_on_request(tmp_path: Path) -> None:
    source = replace(member_source(COUNT), fields=FIELDS)
    manifest = pack(source, "train", tmp_path / "out", samples_per_shard=30, image_sizes=True)
    assert [field.name for field in manifest.fields[-2:]] == ["height", "width"]
    reader = ShardReader(tmp_path / "out", manifest)
    heights, widths = (reader.numbers(0, name).tolist() for name in ("height", "width"))
    for row in range(COUNT):
        body = reader.read(0, row, ["image"])["image"]
        assert isinstance(body, bytes)
        assert image_size(body) == (heights[row], widths[row])
    assert verify(tmp_path / "out").ok
    with pytest.raises(DataError, match="image_sizes records height, which is a member already"):
        pack(packed_source(tmp_path / "out"), "train", tmp_path / "no", image_sizes=True)


def test_what_would_not_fit_the_image_is_not_resized(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"short_side resizes images .* not boxes \(json\)"):
        pack(member_source(COUNT), "train", tmp_path, short_side=16)

    class Pairs(MemberSamples):
        def __getitem__(self, i: int) -> dict[str, object]:
            return {name: super(Pairs, self).__getitem__(i)[name] for name in ("image", "mask")}

    source = replace(
        member_source(), splits={"train": Pairs(sample, np.arange(4))}, fields=FIELDS[:2], classes=()
    )
    manifest = pack(source, "train", tmp_path / "out", short_side=12, shuffle=False)
    reader = ShardReader(tmp_path / "out", manifest)
    for row in range(4):
        image, mask = reader.read(0, row).values()
        assert isinstance(image, bytes)
        assert isinstance(mask, bytes)
        ids, pixels = CODECS["label_image"].decode(mask), CODECS["image"].decode(image)
        assert ids.shape == pixels.shape[:2] == (12, 16)
        np.testing.assert_array_equal(ids, sample(row)["mask"][1::2, 1::2])  # the pixel at half a step


def test_bad_members_are_left_out_and_named(tmp_path: Path) -> None:
    class Broken(MemberSamples):
        def __getitem__(self, i: int) -> dict[str, object]:
            bad = {"mask": b"\x89PNG\r\n\x1a\n", "boxes": b"{"}
            name = {3: "mask", 7: "boxes"}.get(int(self.rows[i]))
            return {**super().__getitem__(i), **({name: bad[name]} if name else {})}

    source = replace(member_source(), splits={"train": Broken(sample, np.arange(COUNT))})
    manifest = pack(source, "train", tmp_path, shuffle=False)
    assert (manifest.samples, manifest.bad_sources) == (COUNT - 2, 2)
    lines = (tmp_path / "bad_sources.tsv").read_text().splitlines()
    assert lines[1].startswith("00000003\tsample 3\t0\tmask: undecodable image")
    assert lines[2].startswith("00000007\tsample 7\t1\tboxes: no JSON text")


def pair(number: int) -> list[tuple[str, bytes]]:
    mask = CODECS["label_image"].encode(np.full((24, 32), number, np.uint8))
    return [(f"k{number}.jpg", jpeg(number)), (f"k{number}.png", mask)]


def test_members_of_foreign_tars_are_found_by_their_extensions(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [*pair(0), *pair(1)[::-1], ("k1.txt", b"no field"), ("k2.jpg", jpeg(2))])
    image, mask = Field("image", "image", "jpg"), Field("mask", "label_image", "png")
    done = index_tars(tmp_path, tmp_path / "out", IndexOptions(fields=(image, mask), image_sizes=True))
    assert [(bad.key, bad.reason) for bad in done.bad] == [("k2", "has no member mask (.png)")]
    assert any("members that belong to no field: 1, such as a.tar: k1.txt" in note for note in done.notes)
    reader = ShardReader(tmp_path / "out", done.manifest)
    for row in range(2):
        members = reader.read(0, row)
        number = [jpeg(0), jpeg(1)].index(members["image"])
        assert (CODECS["label_image"].decode(members["mask"]) == number).all()
        assert (members["height"], members["width"]) == (24, 32)
    (tmp_path / "out" / "a.idx").unlink()
    assert repair(tmp_path / "out").reindexed == ("a.idx",)
    with pytest.raises(
        DataError, match=r"key k0 has two for image, k0.png is the second; say which is which"
    ):
        index_tars(tmp_path, tmp_path / "no", IndexOptions(fields=(Field("image", "image"), FIELDS[1])))


def test_manifests_of_other_fields_are_refused(copy: Path) -> None:
    path = copy / MANIFEST_NAME
    text = path.read_text()
    for old, new, reason in (
        ('"schema": 2', '"schema": 1', "schema 1 with 6 fields"),
        ('"name": "mask"', '"name": "image"', "two members have the name image"),
        ('"codec": "json"', '"codec": 3', "a field is a name, a codec"),
        ('"codec": "json"', '"kodec": "json"', "kodec"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=f"not a manifest .*{reason}"):
            Manifest.load(copy)


def test_exactly_image_and_label_stay_version_1(tmp_path: Path) -> None:
    make_tar(
        tmp_path / "in" / "a.tar",
        [(f"k{n}.{e}", b) for n in range(3) for e, b in (("jpg", jpeg(n)), ("cls", b"0"))],
    )
    done = index_tars(tmp_path / "in")
    assert (done.manifest.schema, done.manifest.fields) == (1, IMAGE_AND_LABEL)
    assert "fields" not in (tmp_path / "in" / MANIFEST_NAME).read_text()
    assert (tmp_path / "in" / "a.idx").stat().st_size == 3 * 24
