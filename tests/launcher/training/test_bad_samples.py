"""A bad training sample in a run: replaced, written down, counted over the ranks; too many end the run."""

import json
import shutil
from pathlib import Path

import pytest

from data_shards.format.index import read_index
from launcher.exit_codes import ExitCode
from tests import faults
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, Outcome, command, overrides, steps

SHORT = ("train.duration=1 epochs", "checkpoint.every=null")


def damaged(shards: Path, folder: Path, rows: list[int]) -> Path:
    """A copy of the shards in which these samples of one shard have a flipped bit each."""
    shutil.copytree(shards, folder)
    path = folder / "train" / "000000.tar"
    tar, index = bytearray(path.read_bytes()), read_index(path.with_suffix(".idx"))
    for row in rows:
        tar[int(index[row]["image"]["offset"]) + 100] ^= 4
    path.write_bytes(tar)
    return folder


def train(shards: Path, run: Path, ranks: int) -> list[Outcome]:
    line = ["train", str(CONFIG), *overrides(shards, run, f"parallel.ep_size={ranks}", *SHORT)]
    return run_on_ranks(command, ranks, *line)


def test_bad_samples_are_replaced_and_counted_on_any_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    data, losses = damaged(shards, tmp_path / "data", [3, 40]), {}
    for ranks in (1, 2):
        run = tmp_path / f"run{ranks}"
        outcomes = train(data, run, ranks)
        assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
        last = steps(run)[-1]["data"]
        assert last["bad_samples"] == 2
        assert last["replaced"] >= 2  # what is read ahead of the last step counts too
        losses[ranks] = [record["loss"] for record in steps(run)]
        lines = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
        assert {(line["shard"], line["row"]) for line in lines} == {("000000.tar", 3), ("000000.tar", 40)}
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)


def test_too_many_bad_samples_end_the_run_and_name_the_shard(shards: Path, tmp_path: Path) -> None:
    """12 of 256: more than max(10, 1e-5 N)."""
    data = damaged(shards, tmp_path / "data", list(range(12)))
    (rank,) = faults.run(1, ["train", str(CONFIG), *overrides(data, tmp_path / "run", *SHORT)])
    assert rank.code == ExitCode.DATA
    assert "000000.tar" in rank.err
    assert "bad samples (at most max(10, 1e-05 x N) = 10)" in rank.err
    assert "Traceback" not in rank.err
