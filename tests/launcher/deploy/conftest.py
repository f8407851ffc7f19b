"""An artifact of a recorded run with experts, made once; tests that change it copy it."""

from pathlib import Path

import pytest

from tests.launcher.deploy.making import make


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the target safetensors, checked in a process of its own; only read."""
    return make(tmp_path_factory.mktemp("artifacts") / "experts")
