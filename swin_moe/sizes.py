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


def window_sides(size: Size, axes: int) -> tuple[int, ...]:
    """The sides of a window of two or three axes; 0 along time where the size has height and width alone."""
    written = size if not isinstance(size, int) and len(size) == axes else sides(size)
    return (0,) * (axes - len(written)) + tuple(written)


def check_size(
    name: str, size: Size, *, least: int, most: int, error: type[ValueError], axes: int = 2
) -> None:
    """Check that a size is one number or two, each between `least` and `most`.

    Args:
        name: dotted, of the option.
        size: as it is written.
        least: the smallest side.
        most: the largest side.
        error: the type to raise.
        axes: 3 if it may also be three numbers, of a window of clips.

    Raises:
        ValueError: of type `error`.
    """
    shown = size if isinstance(size, int) else list(size)
    numbers = [size] if isinstance(size, int) else size
    if not isinstance(size, int) and len(size) not in (2, axes):
        of_clips = ", or three: [time, height, width]" if axes == 3 else ""
        raise error(f"{name} ({shown}) must be one number, of a square, or two: [height, width]{of_clips}")
    if min(numbers) < least:
        raise error(f"{name} ({shown}) must be at least {least}")
    if max(numbers) > most:
        raise error(f"{name} ({shown}) must be at most {most}")


def as_text(size: Size) -> str:
    """A size for a person: 224, or 192x256; of a window of clips 8x7x7."""
    if not isinstance(size, int) and len(size) > 2:
        return "x".join(map(str, size))
    height, width = sides(size)
    return str(height) if height == width else f"{height}x{width}"
