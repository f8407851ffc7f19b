"""The files and losses of tests/recorded.py, which a refactor must read and give again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_shards.verify.verify import verify
from tests.recorded import CASES, KEPT, LOSSES, RUNS, SAVED, SHARDS, figures, processor, release, train

RECORDED = json.loads(LOSSES.read_text())
IS_THE_SAME_TORCH = RECORDED["torch"] == release()
IS_THE_SAME_MACHINE = IS_THE_SAME_TORCH and RECORDED["on"] == processor()


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]], digits: float) -> None:
    if IS_THE_SAME_MACHINE:
        assert found == wanted
        return
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=digits, abs=digits / 10)


@pytest.mark.skipif(
    not IS_THE_SAME_TORCH, reason="torch draws other initial weights: install constraints.txt"
)
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_recorded(name: str, tmp_path: Path) -> None:
    train(name, tmp_path / "run")
    assert_same(figures(tmp_path / "run"), RECORDED["losses"][name], 2e-2 if "bf16" in name else 1e-3)


@pytest.mark.parametrize("name", KEPT)
def test_recorded_runs_go_on(name: str, tmp_path: Path) -> None:
    shutil.copytree(RUNS / name, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "step-00000004").exists()
    train(name, tmp_path / "run")
    wanted = RECORDED["losses"][name]
    assert [row["step"] for row in figures(tmp_path / "run")] == [row["step"] for row in wanted]
    after = [row for row in figures(tmp_path / "run") if row["step"] > SAVED]
    assert_same(after, [row for row in wanted if row["step"] > SAVED], 2e-2 if "bf16" in name else 1e-3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_recorded_shards_are_whole(split: str) -> None:
    assert verify(SHARDS / split).ok
