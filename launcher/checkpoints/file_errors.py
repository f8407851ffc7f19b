"""A file of a checkpoint that cannot be read or written is an error of the user, not a bug."""

from collections.abc import Iterator
from contextlib import contextmanager

from parallel.checkpoint.manifest import CheckpointError


@contextmanager
def file_errors() -> Iterator[None]:
    """Raise CheckpointError, which names the file, for an OSError of a command on checkpoints."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from error
