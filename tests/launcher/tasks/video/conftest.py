"""The videos that the runs of these tests read."""

from pathlib import Path

import pytest

from tests.launcher.tasks.video.video_shards import pack_videos


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos to train on and 7 to evaluate: no number of ranks divides these."""
    return pack_videos(tmp_path_factory.mktemp("video_shards"), 24, 7)
