"""What decodes the frames of a clip: PyAV, or torchcodec where it is installed.

    with READERS["pyav"](body) as video:
        frames = video.read([0, 2, 4])      # of len(video), at video.rate frames a second

PyAV is the default, whatever is installed, so that the pixels depend on the options alone: the FFmpeg of
another package may convert colours otherwise by some levels.

Legend: k frames that are read; H, W height and width of a frame in pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from data_shards.errors import DataError
from data_shards.video.container import Packets, check_pixels, container_format, opened
from data_shards.video.decode import frames_of, sorted_numbers
from data_shards.video.library import pyav


class OpenVideo(Protocol):
    """A video whose frames can be read."""

    @property
    def rate(self) -> float:
        """Frames per second; 0 where that is unknown."""

    def __len__(self) -> int:
        """The number of frames."""

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames with these numbers: (k, H, W, 3) uint8 RGB; DataError where one cannot be decoded."""


Reader = Callable[[bytes], AbstractContextManager[OpenVideo]]


class PyavVideo:
    """Frames by PyAV."""

    def __init__(self, packets: Packets) -> None:
        self._packets = packets
        self.rate = float(packets.rate)

    def __len__(self) -> int:
        return len(self._packets)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames, as `decode_frames` gives them."""
        return frames_of(self._packets, indices)


@contextmanager
def read_by_pyav(body: bytes) -> Iterator[OpenVideo]:
    """A video of the bytes of its file; DataError when it is damaged."""
    with opened(body) as packets:
        yield PyavVideo(packets)


class TorchcodecVideo:
    """Frames by torchcodec, in one thread, found by an exact scan of the file."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.rate = float(decoder.metadata.average_fps or 0)

    def __len__(self) -> int:
        return len(self._decoder)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames; each is decoded once, also where it comes twice."""
        wanted, where = sorted_numbers(indices, len(self))
        pixels: np.ndarray = self._decoder.get_frames_at(wanted.tolist()).data.numpy()
        return pixels[where]


@contextmanager
def read_by_torchcodec(body: bytes) -> Iterator[OpenVideo]:
    """A video of the bytes of its file; DataError when it is damaged, or no file that PyAV is given."""
    decoder = _torchcodec()
    container_format(body)  # FFmpeg opens further files that some formats name
    try:
        video = decoder(body, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        check_pixels(video.metadata.width, video.metadata.height)
        yield TorchcodecVideo(video)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"a video that torchcodec cannot read ({' '.join(str(error).split())})") from error


def _torchcodec() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError) as error:  # RuntimeError: without the libraries of FFmpeg
        reason = str(error).splitlines()[0]
        fix = "pip install torchcodec, which needs FFmpeg's libraries; or reader=pyav"
        raise DataError(f"reader=torchcodec cannot be imported ({reason}): {fix}") from error
    return VideoDecoder


READERS: Mapping[str, Reader] = {"pyav": read_by_pyav, "torchcodec": read_by_torchcodec}
PACKAGES: Mapping[str, Callable[[], Any]] = {"pyav": pyav, "torchcodec": _torchcodec}


def find_reader(name: str) -> Reader:
    """The reader of a name; DataError where there is none, or its package is not installed."""
    if name not in READERS:
        raise DataError(f"reader ({name!r}) must be one of {', '.join(READERS)}")
    PACKAGES[name]()
    return READERS[name]
