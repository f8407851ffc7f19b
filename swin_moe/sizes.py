"""Sizes of images and windows: one number for a square, or two, the height and the width."""

from collections.abc import Sequence

MOST_SIDE = 2**14  # of an image, a patch or a window
Size = int | tuple[int, ...]  # as it is written, in pixels or in tokens


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size.

    Raises:
        ValueError: neither one number nor two.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def check_size(name: str, size: Size, *, least: int, most: int, error: type[ValueError]) -> None:
    """Check that a size is one number or two, each between `least` and `most`.

    Args:
        name: dotted, of the option.
        size: as it is written.
        least: the smallest side.
        most: the largest side.
        error: the type to raise.

    Raises:
        ValueError: of type `error`.
    """
    shown = size if isinstance(size, int) else list(size)
    if not isinstance(size, int) and len(size) != 2:
        raise error(f"{name} ({shown}) must be one number, of a square, or two: [height, width]")
    if min(sides(size)) < least:
        raise error(f"{name} ({shown}) must be at least {least}")
    if max(sides(size)) > most:
        raise error(f"{name} ({shown}) must be at most {most}")


def as_text(size: Size) -> str:
    """A size for a person: 224, or 192x256."""
    height, width = sides(size)
    return str(height) if height == width else f"{height}x{width}"
