"""A shard with a flipped byte, met in mid-run: named, and all ranks end."""

import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from data_shards.format.index import read_index
from tests.launcher.running import CONFIG, descendants, is_alive, overrides, start


class Broken(NamedTuple):
    """What became of a run on two ranks one of whose shards has a flipped byte."""

    split: str
    code: int
    err: str
    ranks: list[int]


@pytest.fixture(scope="module", params=["train", pytest.param("val", marks=pytest.mark.slow)])
def broken(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Broken:
    split, folder = request.param, tmp_path_factory.mktemp("broken")
    shutil.copytree(shards, folder / "data")
    path = folder / "data" / split / "000000.tar"
    tar, offset = (
        bytearray(path.read_bytes()),
        int(read_index(path.with_suffix(".idx"))[40]["image"]["offset"]),
    )
    tar[offset + 200] ^= 255
    path.write_bytes(tar)
    asked = "parallel.ep_size=2", "train.eval_every=1 steps", "data.bad_samples=stop"
    options = overrides(folder / "data", "run", *asked)
    program = start("train", str(CONFIG), "--nproc", "2", *options, cwd=folder)
    ranks: list[int] = []
    while len(ranks) < 2 and program.poll() is None:
        ranks = descendants(program.pid)
        time.sleep(0.02)
    out, err = program.communicate(timeout=120)
    before_training = ("run: ", "layout: ", "  ", "preflight: ", "no checkpoint yet: ")
    assert all(line.startswith(before_training) for line in out.splitlines())
    assert "accuracy" not in out
    return Broken(split, program.returncode, err, ranks)


def test_broken_data_ends_the_program_and_its_ranks(broken: Broken) -> None:
    assert broken.code == 82
    assert len(broken.ranks) >= 2
    assert not any(map(is_alive, broken.ranks))


def test_broken_data_is_named(broken: Broken) -> None:
    (line,) = [line for line in broken.err.splitlines() if line.startswith("RankError: ")]
    assert "rank " in line
    assert f"data/{broken.split}/000000.tar: sample 00000040 at byte " in line


def test_broken_data_gives_no_traceback(broken: Broken) -> None:
    assert "Traceback" not in broken.err
