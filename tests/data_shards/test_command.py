"""`swin-moe shards ...` from its arguments to what it prints."""

import argparse
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.index import Manifest
from launcher import shards


def command(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    shards.add_parser(parser.add_subparsers())
    return shards.run(parser.parse_args(["shards", *map(str, words)]))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack_into(tmp_path)
    return tmp_path


def pack_into(out: Path) -> int:
    options = {"train": 30, "val": 7, "classes": 3, "size": 8}
    sizes = [word for name, value in options.items() for word in (f"--synthetic-{name}", str(value))]
    return command("pack", "--source", "synthetic", *sizes, "--samples-per-shard", "10", "--out", out)


def test_pack_writes_both_splits_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path
    assert pack_into(packed) == 0
    assert Manifest.load(packed / "train").samples_per_shard.tolist() == [10, 10, 10]
    assert Manifest.load(packed / "val").samples == 7
    out, err = capsys.readouterr()
    digest = Manifest.load(packed / "train").digest[:12]
    assert f"{packed}/train: synthetic, 30 samples in 3 shards, manifest {digest}" in out
    assert "train: 30/30 samples" in err


def test_verify_exits_1_and_names_the_sample(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", packed, "--decode", "--workers", "2") == 0
    path = packed / "train" / "000001.tar"
    body = bytearray(path.read_bytes())
    body[512 + 20] ^= 1  # the first JPEG of the shard: key 10
    path.write_bytes(body)
    capsys.readouterr()
    assert command("verify", packed) == 1
    assert f"{path}: 00000010: checksum of the JPEG differs" in capsys.readouterr().out


def test_info_counts_each_class(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("info", packed / "val") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["         3  grating-0", "         2  grating-1", "         2  grating-2"]  # 7 mod 3


def test_errors_reach_main(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        command("info", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"--workers \(0\)"):
        command("verify", tmp_path, "--workers", "0")
