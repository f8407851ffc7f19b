"""The size of pictures in pixels: one number for a square, or two, the height and the width."""

from data_shards.errors import DataError

ImageSize = int | tuple[int, int]


def sides(image_size: ImageSize) -> tuple[int, int]:
    """Height and width; DataError when one of them is below 1."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise DataError(f"image_size ({image_size}) must be at least 1")
    return height, width
