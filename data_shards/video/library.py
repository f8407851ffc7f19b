"""PyAV, which reads and writes videos; it is imported where it is used."""

from types import ModuleType

from data_shards.errors import DataError


def pyav() -> ModuleType:
    """The package `av` (PyAV, with its own FFmpeg); DataError with the command that installs it."""
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise DataError(
            f"videos need PyAV, which cannot be imported ({error}): pip install 'swin-moe[video]'"
        ) from error
    found: ModuleType = av
    return found
