"""What Pillow does not look at in a TIFF: whether all of it is there, and how its gray values are meant.

Tags are those of the TIFF 6.0 specification, sections 3, 8 and 15.
"""

from PIL.TiffImagePlugin import TiffImageFile

BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR_CONFIGURATION = 258, 262, 284
STRIPS, TILES = (273, 279), (324, 325)  # the tags with their offsets, and with their sizes in bytes
WHITE_IS_ZERO, SEPARATE_PLANES = 0, 2


def check_whole(image: TiffImageFile, size: int) -> None:
    """ValueError unless a file of `size` bytes holds every strip of the image, and they cover all of it."""
    if image.tile[0][0] == "libtiff":
        offsets, sizes = next((tags for tags in (STRIPS, TILES) if tags[0] in image.tag_v2), STRIPS)
        parts = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(sizes, ()), strict=False)
        if any(start + count > size for start, count in parts):
            raise ValueError("a TIFF that is cut short: a strip ends beyond the end of the file")
        return
    planes = len(image.getbands()) if has_separate_planes(image) else 1
    boxes = [tile[1] for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if covered < planes * image.width * image.height:
        raise ValueError("a TIFF whose strips do not cover the image")


def has_separate_planes(image: TiffImageFile) -> bool:
    """Whether each channel is stored by itself."""
    return bool(image.tag_v2.get(PLANAR_CONFIGURATION) == SEPARATE_PLANES)


def bits(image: TiffImageFile) -> int:
    """Bits a channel; Pillow reads images only whose channels all have the same."""
    return int(image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0])


def is_inverted(image: TiffImageFile) -> bool:
    """Whether 0 is white, which Pillow applies to at most 8 bits."""
    return bool(image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO)
