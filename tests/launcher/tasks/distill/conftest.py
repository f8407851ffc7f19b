"""The teacher of the runs of these tests."""

from pathlib import Path

import pytest

from tests.launcher.tasks.distill.teachers import write_teacher


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of a dense Swin."""
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")
