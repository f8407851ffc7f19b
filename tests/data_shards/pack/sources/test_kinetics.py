"""Videos of lists and of folders, of Kinetics and of Something-Something, through the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.fields import VIDEO_AND_LABEL
from data_shards.format.index import Manifest
from data_shards.pack.sources.kinetics import kinetics, split_in
from data_shards.pack.sources.something_something import something_something
from data_shards.stream.reader import ShardReader
from data_shards.video.decode import decode_frames
from data_shards.video.facts import read_facts
from data_shards.video.prepare import VideoRecipe
from launcher.cli.program import run
from tests.data_shards.videos import coded_video, number_of, sound_file

CLASSES = ("playing guitar", "abseiling")
COPY = VideoRecipe()


def write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three training videos in directories of their classes, two for validation."""
    root = tmp_path / "k400"
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for i in range(5):
        split, label = ("train", "val")[i > 2], i % 2
        name = f"{CLASSES[label]}/v{i}.mp4"
        write(root / f"kinetics_{split}" / name, coded_video(10 + i))
        lines[split].append(f"{name} {label}")
    for split, text in lines.items():
        (root / f"kinetics400_{split}_list_videos.txt").write_text("\n".join(text) + "\n")
    (root / "readme.txt").write_text("no list")
    return root


@pytest.fixture
def something(tmp_path: Path) -> Path:
    root = tmp_path / "ssv2"
    labels = {"Moving something up": "1", "Holding something": "0"}
    (root / "labels").mkdir(parents=True)
    (root / "labels" / "labels.json").write_text(json.dumps(labels))
    options = {"codec": "libvpx-vp9", "container": "webm", "options": (("cpu-used", "8"),)}
    for split, ids in {"train": (7, 12, 30), "validation": (41,)}.items():
        templates = ["Moving [something] up" if one % 2 else "Holding [something]" for one in ids]
        entries = [
            {"id": str(one), "label": "x", "template": template, "placeholders": ["a cup"]}
            for one, template in zip(ids, templates, strict=True)
        ]
        (root / "labels" / f"{split}.json").write_text(json.dumps(entries))
        for one in ids:
            write(root / "20bn-something-something-v2" / f"{one}.webm", coded_video(one, **options))  # type: ignore[arg-type]
    (root / "labels" / "test.json").write_text('[{"id": "50"}]')
    return root


def command(*words: str | Path) -> int:
    return run(["shards", *map(str, words)])


def test_lists_give_paths_labels_and_classes(listed: Path) -> None:
    source = kinetics(listed, recipe=COPY)
    assert source.classes == CLASSES
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 3, "val": 2}
    train = source.splits["train"]
    assert [train.describe(i) for i in range(3)][1] == "kinetics_train/abseiling/v1.mp4"
    assert [train.label(i) for i in range(3)] == [0, 1, 0]
    sample = train.select(np.array([1]))[0]
    assert {name: sample[name] for name in ("label", "frames", "fps_millis", "height", "width")} == {
        "label": 1,
        "frames": 11,
        "fps_millis": 25000,
        "height": 32,
        "width": 48,
    }
    assert sample["video"].body == coded_video(11)
    assert source.notes == ()


def test_packed_by_the_command_and_read_back(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["pack", "--source", "kinetics", "--directory", listed, "--out", out]
    assert command(*line, "--video-side", "16", "--video-key-distance", "4", "--workers", "2") == 0
    assert "train [########################] 100% 3/3 samples" in capsys.readouterr().err
    manifest = Manifest.load(out / "train")
    assert (manifest.name, manifest.samples, manifest.classes) == ("kinetics", 3, CLASSES)
    assert manifest.writer.source == "videos, short side 16, key distance 4, crf 23"
    reader = ShardReader(out / "train", manifest)
    counts = reader.numbers(0, "frames").tolist()
    assert sorted(counts) == [10, 11, 12]
    for row, count in enumerate(counts):
        body = reader.read(0, row, ["video"])["video"]
        assert isinstance(body, bytes)
        assert [number_of(frame) for frame in decode_frames(body, range(count))] == list(range(count))
        facts = read_facts(body)
        assert (facts.frames, facts.height, facts.width) == (count, 16, 24)
    assert command("verify", out, "--decode") == 0
    assert command("info", out / "train") == 0
    assert "kinetics/train: 3 samples" in capsys.readouterr().out


def test_missing_and_bad_videos_are_named(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train = listed / "kinetics_train" / "playing guitar"
    (train / "v0.mp4").unlink()
    (train / "v2.mp4").write_bytes(sound_file())
    out = tmp_path / "out"
    line = ["pack", "--source", "kinetics", "--directory", listed, "--out", out, "--splits", "train"]
    assert command(*line, "--video-side", "0") == 0
    said = caplog.text + capsys.readouterr().err
    assert "1 of 3 videos are not there or empty, such as kinetics_train/playing guitar/v0.mp4" in said
    bad = (out / "train" / "bad_sources.tsv").read_text()
    assert "v0.mp4\t0\tNo such file or directory" in bad
    assert "v2.mp4\t0\ta file without a video stream: it has audio" in bad
    assert Manifest.load(out / "train").samples == 1


def test_a_list_of_commas_and_classes_of_a_file(listed: Path) -> None:
    text = (listed / "kinetics400_val_list_videos.txt").read_text().replace(".mp4 ", ".mp4,")
    (listed / "kinetics400_val_list_videos.txt").write_text(text)
    source = kinetics(listed, classes=["a", "b", "c"], splits=["val"], recipe=COPY)
    assert source.classes == ("a", "b", "c")
    assert [source.splits["val"].label(i) for i in range(2)] == [1, 0]


def test_classes_without_folders_are_numbers(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"{i}.mp4", coded_video(10))
    (tmp_path / "train.txt").write_text("0.mp4 0\n1.mp4 2\n")
    assert kinetics(tmp_path, recipe=COPY).classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("abseiling/v1 300 1", "line 4 is 'abseiling/v1 300 1', not a video file and its label"),
        ("abseiling/v1.mp4", "line 4 is"),
        ("abseiling/v1.mp4 -1", "line 4 is"),
    ],
)
def test_a_line_that_is_none_is_named(listed: Path, line: str, reason: str) -> None:
    with (listed / "kinetics400_train_list_videos.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=reason):
        kinetics(listed, recipe=COPY)


def test_what_lists_lack_is_refused(listed: Path) -> None:
    with pytest.raises(DataError, match=r"--splits test: .* holds lists of train, val"):
        kinetics(listed, splits=["test"], recipe=COPY)
    with pytest.raises(DataError, match=r"has label 1; --classes names 1, from 0 on"):
        kinetics(listed, classes=["one"], recipe=COPY)
    (listed / "train.csv").write_text("x.mp4 0\n")
    with pytest.raises(DataError, match="are both a list of the split train"):
        kinetics(listed, recipe=COPY)
    (listed / "train.csv").unlink()
    (listed / "kinetics400_train_list_videos.txt").write_text("nowhere/x.mp4 0\n")
    with pytest.raises(DataError, match="none of 1 of its videos, such as nowhere/x.mp4, is below"):
        kinetics(listed, recipe=COPY)


def test_folders_of_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(("jump", "run")):
            write(tmp_path / split / name / f"{label}.MP4", coded_video(10 + label))
    write(tmp_path / "train" / "jump" / "0.jpg", b"no video")
    source = kinetics(tmp_path, recipe=COPY)
    assert source.classes == ("jump", "run")
    assert [source.splits["val"][i]["frames"] for i in range(2)] == [10, 11]
    assert any("files without the suffix of a video: 1, such as jump/0.jpg" in note for note in source.notes)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("kinetics400_train_list", "train"),
        ("Validation", "val"),
        ("k600-val", "val"),
        ("training_data", "train"),
        ("trainer", None),
        ("labels", None),
    ],
)
def test_the_split_in_a_name(name: str, split: str | None) -> None:
    assert split_in(name) == split


def test_something_something_is_copied_into_mp4(something: Path, tmp_path: Path) -> None:
    source = something_something(something)
    assert source.classes == ("Holding something", "Moving something up")
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 3, "val": 1}
    assert [source.splits["train"].label(i) for i in range(3)] == [1, 0, 0]
    out = tmp_path / "out"
    assert command("pack", "--source", "something-something", "--directory", something, "--out", out) == 0
    manifest = Manifest.load(out / "train")
    assert manifest.writer.source == "videos, copied"
    reader = ShardReader(out / "train", manifest)
    counts = reader.numbers(0, "frames").tolist()
    assert sorted(counts) == [7, 12, 30]
    for row, count in enumerate(counts):
        body = reader.read(0, row, ["video"])["video"]
        assert isinstance(body, bytes)
        assert body[4:8] == b"ftyp"
        assert [number_of(frame) for frame in decode_frames(body, range(count))] == list(range(count))


@pytest.mark.parametrize(
    ("file", "value", "reason"),
    [
        ("labels", {"a": "0", "b": "2"}, "with numbers from 0 on"),
        ("labels", ["a"], "must be a JSON object"),
        ("train", {}, "must be a JSON list"),
        ("train", [{"id": "7"}], "entry 0 has no id or no template"),
        ("train", [{"id": "../7", "template": "x"}], "which is no number"),
        (
            "train",
            [{"id": "7", "template": "Eating [something]"}],
            "video 7 has the template 'Eating something'",
        ),
        (
            "train",
            [{"id": "99", "template": "Holding something"}],
            "none of 1 of its videos, such as 99.webm",
        ),
    ],
)
def test_a_wrong_json_is_named(something: Path, file: str, value: Any, reason: str) -> None:
    (something / "labels" / f"{file}.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=reason):
        something_something(something)


def test_options_of_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--video-side is for --source kinetics and something-something"):
        command("pack", "--source", "synthetic", "--video-side", "128", "--out", tmp_path / "out")
    with pytest.raises(DataError, match=r"--video-side \(255\) must be an even number"):
        command(
            "pack",
            "--source",
            "kinetics",
            "--directory",
            tmp_path,
            "--video-side",
            "255",
            "--out",
            tmp_path / "out",
        )


def test_repair_and_split_of_video_shards(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = ["--source", "kinetics", "--directory", listed, "--video-side", "16"]
    assert command("pack", *source, "--out", out, "--splits", "train", "--samples-per-shard", "2") == 0
    path = out / "train" / "000000.tar"
    body = bytearray(path.read_bytes())
    body[600] ^= 1
    path.write_bytes(bytes(body))
    assert command("verify", out / "train") == 1
    assert command("repair", out / "train", *source) == 0
    assert command("verify", out / "train", "--decode") == 0
    assert command("split", out / "train", "--out", tmp_path / "cut", "--val-per-class", "1") == 0
    parts = [Manifest.load(tmp_path / "cut" / split) for split in ("train", "val")]
    assert sum(part.samples for part in parts) == 3
    assert [field.name for field in parts[0].fields] == [field.name for field in VIDEO_AND_LABEL]
    assert command("pack", "--source", "shards", "--directory", out, "--out", tmp_path / "again") == 0
    assert Manifest.load(tmp_path / "again" / "train").samples == 3
