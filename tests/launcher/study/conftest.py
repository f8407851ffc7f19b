"""The report of a study, made once for all tests of this directory, which one worker runs."""

from pathlib import Path

import pytest

from launcher.cli.program import main
from tests.launcher.study.study_runs import write_troubled


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with trials in every state and its report, made by the command; only read."""
    root = write_troubled(tmp_path_factory.mktemp("studies") / "study")
    assert main(["study", "report", str(root)]) == 0
    return root
