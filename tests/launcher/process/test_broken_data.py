"""A shard with a flipped byte, met in mid-run: named, and all ranks end."""

import shutil
import time
from pathlib import Path

import pytest

from data_shards.format.index import read_index
from launcher.exit_codes import ExitCode
from tests.faults import one_line, run
from tests.launcher.running import CONFIG, descendants, is_alive, overrides, start

BEFORE_TRAINING = ("run: ", "layout: ", "  ", "preflight: ", "no checkpoint yet: ")


def damaged(shards: Path, folder: Path, split: str) -> list[str]:
    """The command of a run on two ranks one of whose shards has a flipped byte."""
    shutil.copytree(shards, folder / "data")
    path = folder / "data" / split / "000000.tar"
    tar = bytearray(path.read_bytes())
    tar[int(read_index(path.with_suffix(".idx"))[40]["image"]["offset"]) + 200] ^= 255
    path.write_bytes(tar)
    asked = "parallel.ep_size=2", "train.eval_every=1 steps", "data.bad_samples=stop"
    return ["train", str(CONFIG), *overrides(folder / "data", folder / "run", *asked)]


def assert_named(line: str, split: str) -> None:
    assert line.startswith("RankError: rank ")
    assert f"data/{split}/000000.tar: sample 00000040 at byte " in line


def assert_nothing_trained(out: str) -> None:
    assert all(line.startswith(BEFORE_TRAINING) for line in out.splitlines())
    assert "accuracy" not in out


@pytest.mark.parametrize("split", ["train", pytest.param("val", marks=pytest.mark.slow)])
def test_broken_data_ends_all_ranks_and_is_named_once(shards: Path, tmp_path: Path, split: str) -> None:
    ended = run(2, damaged(shards, tmp_path, split))
    codes = {rank.code for rank in ended}
    assert ExitCode.DATA in codes
    assert codes <= {ExitCode.DATA, ExitCode.LOST_RANK}  # the other rank may meet the loss of this one first
    assert_named(one_line(ended, "RankError"), split)
    assert_nothing_trained(ended[0].out)


@pytest.mark.slow
def test_the_program_ends_with_its_ranks(shards: Path, tmp_path: Path) -> None:
    program = start(*damaged(shards, tmp_path, "train"), "--nproc", "2", cwd=tmp_path)
    ranks: list[int] = []
    while len(ranks) < 2 and program.poll() is None:
        ranks = descendants(program.pid)
        time.sleep(0.02)
    out, err = program.communicate(timeout=120)
    assert program.returncode == ExitCode.DATA
    assert len(ranks) >= 2
    assert not any(map(is_alive, ranks))
    (line,) = [line for line in err.splitlines() if line.startswith("RankError: ")]
    assert_named(line, "train")
    assert "Traceback" not in err
    assert_nothing_trained(out)
