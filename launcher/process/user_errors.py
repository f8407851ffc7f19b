"""Errors that a user can correct. No torch."""

import sys

from data_shards.errors import DataError
from launcher.config.errors import ConfigError, TaskError
from parallel.checkpoint.manifest import CheckpointError
from parallel.ranks.dims import LayoutError
from parallel.zero.errors import TeacherError
from swin_moe.errors import ModelError

USER_ERRORS = (ConfigError, DataError, CheckpointError, LayoutError, ModelError, TaskError, TeacherError)


def print_error(error: BaseException) -> None:
    """Say what happened in one line and without a traceback."""
    sys.stderr.write(f"{type(error).__name__}: {error}\n")  # one write: the ranks share the terminal
    sys.stderr.flush()
