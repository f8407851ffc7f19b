"""Uninterrupted runs, which the tests of resumed runs compare with."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_on_ranks
from tests.launcher.running import command
from tests.launcher.training.resumed_runs import engine, train_line


@pytest.fixture(scope="session")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The directory of an uninterrupted run at a ZeRO stage and precision; each is made once."""
    made: dict[tuple[int, str], Path] = {}

    def run(stage: int, precision: str = "fp32") -> Path:
        if (stage, precision) not in made:
            path = tmp_path_factory.mktemp("uninterrupted") / "run"
            line = train_line(shards, path, *engine(stage, precision))
            assert [outcome.code for outcome in run_on_ranks(command, 2, *line)] == [0, 0]
            made[stage, precision] = path
        return made[stage, precision]

    return run
