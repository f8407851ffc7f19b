"""Tars of others through webdataset: every sample comes, and what cannot be promised is printed."""

import re
import tarfile
from itertools import islice
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.format.tar_names import names_tars
from data_shards.image.decode import decode_image
from data_shards.stream.patterns import expand, redacted
from data_shards.stream.webdataset import WebDatasetStream
from tests.data_shards.conftest import SAMPLES
from tests.data_shards.image_folders import jpeg
from tests.data_shards.streams import TRANSFORM, webdataset_stream
from tests.data_shards.tars import make_tar
from tests.data_shards.tiny_splits import bodies_of


def foreign(place: str, rank: int = 0, ranks: int = 1, **options: object) -> WebDatasetStream:
    defaults = {"seed": 3, "global_batch_size": 20, "micro_batch_size": 5}
    return webdataset_stream(place, dp_rank=rank, dp_size=ranks, **(defaults | options))


def test_samples_come_as_webdataset_reads_them(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies, labels = bodies_of(shards)
    with foreign(f"{shards}/{{000000..000005}}.tar", shuffle_buffer=1) as stream:
        batches = list(islice(stream, 20))  # five steps of 20: less than one pass over 103
        assert stream.samples == 100
        state = stream.state_dict()
    said = capsys.readouterr().err
    for words in ("exactly-once", "exact resume", "number of ranks", "integrity", "swin-moe shards index"):
        assert words in said
    known = {
        (decode_image(body, TRANSFORM, DrawKey(3, p)).tobytes(), label)
        for p in range(100)
        for body, label in zip(bodies, labels, strict=True)
    }
    found = [
        (image.numpy().tobytes(), label)
        for batch in batches
        for image, label in zip(batch["image"], batch["label"].tolist(), strict=True)
    ]
    assert set(found) <= known
    resumed = foreign(f"{shards}/{{000000..000005}}.tar")
    resumed.load_state_dict(state)
    with resumed:
        assert next(iter(resumed)).positions.tolist() == [100, 101, 102, 103, 104]
    with pytest.raises(
        DataError, match=r"data state: of the tars .*05}.tar, not of .*/000000.tar; read what"
    ):
        foreign(f"{shards}/000000.tar").load_state_dict(state)


def test_the_order_does_not_depend_on_threads(shards: Path) -> None:
    seen = []
    for threads in (1, 3):
        with foreign(f"{shards}/{{000000..000005}}.tar", threads=threads, shuffle_buffer=50) as stream:
            seen.append([batch["image"].numpy().tobytes() for batch in islice(stream, 30)])
            assert stream.counts()["bytes"] > 0
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 30


def test_ranks_share_the_tars_out(shards: Path) -> None:
    """Three ranks of two tars each; a pass of all is every tar once."""
    urls = []
    for rank in range(3):
        stream = foreign(f"{shards}/{{000000..000005}}.tar", rank, 3, global_batch_size=15)
        urls += [tar["url"] for tar in islice(stream.tars(0), 2)]
    assert len(set(urls)) == 6


def test_what_is_wrong_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scheme ftp is not allowed"):
        expand("ftp://host/{0..3}.tar")
    with pytest.raises(DataError, match=r"s3://b/0.tar: scheme s3 is not allowed here; .* pipe:aws s3 cp"):
        expand("s3://b/{0..3}.tar")
    with pytest.raises(DataError, match=r"{0..3.tar: its braces are not in pairs"):
        expand("x/{0..3.tar")
    with pytest.raises(DataError, match=r"999999.tar: no such tar"):
        expand(f"{shards}/999999.tar")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with (
        pytest.raises(DataError, match="no samples in these tars"),
        foreign(f"{tmp_path}/empty.tar") as stream,
    ):
        next(iter(stream))
    with (
        pytest.raises(DataError, match=r"sample 000000\d\d: has an image and the label \d; .* below 2"),
        foreign(f"{shards}/000000.tar", num_classes=2) as stream,
    ):
        list(islice(stream, SAMPLES))


def first_error(place: str) -> str:
    with pytest.raises(DataError) as caught, foreign(place) as stream:
        list(islice(stream, 5))
    return str(caught.value)


def test_what_cannot_be_read_is_named(shards: Path, tmp_path: Path) -> None:
    (body, _), path = bodies_of(shards), tmp_path / "x.tar"
    tar = (shards / "000000.tar").read_bytes()
    path.write_bytes(tar[: len(tar) // 2 + 100])
    assert first_error(str(path)) == f"{path}: cannot read it: ReadError: unexpected end of data"
    path.write_bytes(tar.replace(body[0], b"\0" * len(body[0])))
    assert first_error(f"file:{path}").startswith(f"{path}: sample 00000000: ")
    for command in (f"false {path}", f"head -c 1000 {path}; exec 1>&-; exit 3"):
        said = first_error(f"pipe:TOKEN=secret {command}")
        # the status, if the command has ended before its end is read
        assert re.search(r"\.tar: cannot read it: (ReadError|the command .* exited with status [13]$)", said)
        assert "secret" not in said


def test_hidden_members_are_skipped_and_other_labels_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, spellings = tmp_path / "a.tar", ["{}", "{}.0", "\ufeff{}", " {}\n"]
    members: list[tuple[str, bytes]] = [("._0.jpg", b"x"), ("__MACOSX/0.jpg", b"x")]
    for n, suffix in enumerate(("jpg", "JPEG", "tif", "webp")):
        members += [(f"{n}.{suffix}", jpeg(n)), (f"{n}.cls", spellings[n].format(n).encode())]
    make_tar(path, members)
    with foreign(str(path), micro_batch_size=4, global_batch_size=4) as stream:
        batches = list(islice(stream, 3))
    assert {label for batch in batches for label in batch["label"].tolist()} == {0, 1, 2, 3}
    said = capsys.readouterr().err
    assert f"{path}: hidden or system files or directories are skipped, such as ._0.jpg" in said
    assert f"{path}: skipped hidden or system files or directories: 2, such as ._0.jpg" in said


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (
            [("a.heic", b"x"), ("a.cls", b"0")],
            "sample a: has no member with the suffix of an image, but .heic, .cls;",
        ),
        (
            [("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"0")],
            "has no .cls, but .jpg; .* must be side by side",
        ),
        ([("a.jpg", b"x"), ("a.cls", b"nan")], "sample a: label nan must be a whole number from 0"),
        ([("a.jpg", b"x"), ("a.cls", b"dog")], "the label 'dog'; it must be a number below 5"),
    ],
)
def test_samples_that_lack_a_part_say_which(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    make_tar(tmp_path / "a.tar", members)
    assert re.search(reason, first_error(str(tmp_path / "a.tar")))


def test_a_page_instead_of_a_tar_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>404</html>" * 100)
    assert first_error(str(tmp_path / "a.tar")).startswith(
        f"{tmp_path}/a.tar: cannot read it: it is an HTML page (an error page of the download?), not a tar"
    )


def test_positions_are_those_of_the_other_stream(shards: Path) -> None:
    """Two ranks, steps of 20 in micro-batches of 5: [kB, (k+1)B), of which each rank has a half."""
    for rank in range(2):
        with foreign(f"{shards}/{{000000..000005}}.tar", rank, 2) as stream:
            found = [int(p) for batch in islice(stream, 4) for p in batch.positions]
        assert found == [*range(10 * rank, 10 * rank + 10), *range(20 + 10 * rank, 30 + 10 * rank)]


def test_commands_and_their_braces(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = expand(f"pipe:cat {shards}/{{000000..000002}}.tar | awk '{{print}}' ${{X}}")
    assert commands == [f"pipe:cat {shards}/00000{i}.tar | awk '{{print}}' ${{X}}" for i in range(3)]
    assert expand("pipe:cat {a,b}.tar") == ["pipe:cat {a,b}.tar"]
    with foreign(f"pipe:cat {shards}/{{000000..000002}}.tar") as stream:
        assert len(list(islice(stream, 8))) == 8
    assert f"pipe:cat ... {shards}/{{000000..000002}}.tar: no manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "tars"),
    [
        ("/data/x/train", False),
        ("/data/x/{000000..000146}.tar", True),
        ("/data/{a/0.tar,b/1.tar}", True),
        ("/data/{a,b}/train", False),
        ("https://host/x/0.tar?key=a/b", True),
        ("s3://bucket/x/train", False),
        ("pipe:aws s3 cp s3://bucket/x/train/{} -", False),
        ("pipe:aws s3 cp s3://bucket/x/{000..146}.tar -", True),
    ],
)
def test_tars_are_told_from_splits_by_their_names(place: str, tars: bool) -> None:
    assert names_tars(place) == tars


def test_messages_show_no_secrets() -> None:
    assert redacted("https://me:word@host/x.tar?key=word") == "https://host/x.tar"
    assert redacted("pipe:curl -H word https://me:word@host/x.tar") == "pipe:curl ... https://host/x.tar"
    assert redacted("/data/what?/x.tar") == "/data/what?/x.tar"
