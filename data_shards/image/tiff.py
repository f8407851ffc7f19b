"""What Pillow does not look at in a TIFF: whether all of it is there, and what its numbers mean.

Tags are those of the TIFF 6.0 specification, sections 3, 8, 15 and 19.
"""

import operator

from PIL.TiffImagePlugin import TiffImageFile

BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR_CONFIGURATION, SAMPLE_FORMAT = 258, 262, 284, 339
STRIPS, TILES = (273, 279), (324, 325)  # the tags with their offsets, and with their sizes in bytes
WHITE_IS_ZERO, SEPARATE_PLANES, SIGNED = 0, 2, 2


def check_pixels(image: TiffImageFile) -> None:
    """ValueError for pixels that Pillow takes for others: signed ones, and deep ones in separate planes."""
    if image.tag_v2.get(SAMPLE_FORMAT, (1,))[0] == SIGNED:
        raise ValueError("signed integer pixels, whose black and white nobody can know; save it unsigned")
    if _planes(image) > 1 and image.tag_v2[BITS_PER_SAMPLE][0] != 8:
        raise ValueError("a TIFF of other than 8 bits in separate planes; save it with interleaved channels")


def check_whole(image: TiffImageFile, size: int) -> None:
    """ValueError unless a file of `size` bytes holds every strip of the image, and they cover all of it."""
    if image.tag_v2.next == image.tag_v2.offset:  # what Pillow leaves there when the file ends before it
        raise ValueError("a TIFF that is cut short: its directory has no end")
    if image.tile[0][0] == "libtiff":
        offsets, sizes = STRIPS if STRIPS[0] in image.tag_v2 else TILES
        ends = map(operator.add, image.tag_v2.get(offsets, ()), image.tag_v2.get(sizes, ()))
        if max(ends, default=0) > size:
            raise ValueError("a TIFF that is cut short: a strip ends beyond the end of the file")
        return
    boxes = [tile[1] or (0, 0, 0, 0) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if covered < _planes(image) * image.width * image.height:
        raise ValueError("a TIFF whose strips do not cover the image")


def _planes(image: TiffImageFile) -> int:
    separate = image.tag_v2.get(PLANAR_CONFIGURATION) == SEPARATE_PLANES
    return len(image.getbands()) if separate else 1


def gray_range(image: TiffImageFile) -> tuple[int, bool]:
    """The largest value of a gray image, and whether 0 is white, which Pillow applies to 8 bits alone."""
    bits = image.tag_v2[BITS_PER_SAMPLE][0]
    return 2**bits - 1, image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
