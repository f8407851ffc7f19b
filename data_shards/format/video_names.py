"""Which files are videos, by their names."""

VIDEO_SUFFIXES = ("mp4", "m4v", "mov", "mkv", "webm", "avi")
"""The suffixes of the containers that are read, in lower case; the first bytes decide when one is read."""
_ENDINGS = tuple(f".{suffix}" for suffix in VIDEO_SUFFIXES)


def is_video(name: str) -> bool:
    """Whether a file name has the suffix of a video, in upper or lower case."""
    return name.lower().endswith(_ENDINGS)
