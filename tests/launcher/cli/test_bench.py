"""`swin-moe bench data`: its figures are measured, add up, and lead to the cores that they imply."""

import json
from pathlib import Path

import pytest

from data_shards.image import region
from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from data_shards.stream.benchmark import STAGES, StorageRate, StreamRate
from launcher.cli.bench import render, report
from launcher.cli.program import main


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "train"
    pack(synthetic(40, 4, 4, 64), "train", out, samples_per_shard=15)
    return out


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["bench", "data", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_every_figure_is_there_and_adds_up(split: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--image-size",
        32,
        "--images",
        60,
        "--batch-size",
        16,
        "--threads",
        1,
        "--target",
        100,
        "--json",
    )
    found = json.loads(bench(capsys, split, *options))
    assert tuple(found["stages_ms"]) == STAGES
    assert all(ms > 0 for ms in found["stages_ms"].values())
    assert found["img_s_core"] == pytest.approx(1e3 / sum(found["stages_ms"].values()))
    assert found["storage"]["img_s"] > 0
    assert found["stream"]["img_s"] > 0
    assert found["target"]["cores"] >= 1
    sizes = [size for index in split.glob("*.idx") for size in _sizes(index)]
    image_mb = found["target"]["storage_mb_s"] / 100
    assert min(sizes) / 1e6 <= image_mb <= max(sizes) / 1e6


def _sizes(index: Path) -> list[int]:
    from data_shards.format.index import read_index

    return read_index(index)["image"]["size"].tolist()


def test_the_text_names_every_stage(split: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = bench(capsys, split, "--images", 8, "--batch-size", 8, "--image-size", 16, "--target", 5)
    for word in (*STAGES, "storage", "stream", "5 images/s need 1 cores"):
        assert word in text


def test_it_says_what_decodes_and_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "decode_in_c", lambda *_: 0)
    assert "the crop alone" in region.describe()
    monkeypatch.setattr(region, "decode_in_c", None)
    storage, stream = (
        StorageRate(img_s=1, mb_s=1, threads=1, cold=True),
        StreamRate(img_s=1, cpu_s=1, threads=1),
    )
    text = render("x", report(storage, dict.fromkeys(STAGES, 0.001), stream, cores=1, target=None))
    assert "  decoder   whole JPEGs" in text
    assert "apt install libjpeg-dev" in text


def test_cores_and_storage_by_hand() -> None:
    # 2.5 ms an image: 2000 images/s need 5 cores; 0.1 MB an image: 200 MB/s
    storage = StorageRate(img_s=1000, mb_s=100, threads=2, cold=True)
    stages = {"read": 0.0001, "decode": 0.0015, "resize": 0.0003, "collate": 0.0001}
    found = report(storage, stages, StreamRate(img_s=700, cpu_s=0.0025, threads=2), cores=4, target=2000)
    assert found["img_s_core"] == pytest.approx(500)
    assert found["target"] == {"img_s": 2000, "cores": 5, "storage_mb_s": pytest.approx(200)}
    text = render("x", found)
    assert "decode    1.500 ms   75%" in text
    assert "too little here: it has 4 cores and its storage gave 100 MB/s" in text
    enough = report(storage, stages, StreamRate(img_s=700, cpu_s=0.0025, threads=2), cores=4, target=900)
    assert "enough here" in render("x", enough)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads", 0),
        ("--target", 0),
        ("--target", "nan"),
        ("--images", 0),
        ("--batch-size", 0),
        ("--image-size", 0),
    ],
)
def test_nonsense_is_refused(
    split: Path, capsys: pytest.CaptureFixture[str], option: str, value: object
) -> None:
    assert main(["bench", "data", str(split), option, str(value)]) == 2
    error = capsys.readouterr().err
    assert option.strip("-").replace("-", "_") in error.replace("-", "_")
    assert error.count("\n") == 1


def test_no_split_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "data", str(tmp_path / "none")]) == 2
    assert "shards pack" in capsys.readouterr().err
