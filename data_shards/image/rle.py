"""Run lengths of binary masks, in the two orders that detection has.

COCO's counts are the lengths of runs of pixels, column by column, alternately of zeros and of ones, beginning
with zeros (0 of them where the first pixel is one). Its compressed text has for each count from the fourth on
the difference from the count two before, in digits of 5 bits from the least on, each as a character from "0"
on; 32 means that more digits follow, and the last digit has the sign. The other order is the same row by row,
of the image that a model gets.

pycocotools does not give counts, and it decodes a text without counts to pixels that were never written, so
the text is read and written here. Its rule for polygons is in polygons.py.

Legend: H, W height and width of the image; h, w of what a transform makes of it; n runs.
"""

from typing import NamedTuple

import numpy as np

from data_shards.errors import DataError

FIRST, MORE, SIGN, BITS = 48, 32, 16, 5  # of a character: the one of digit 0, the flags, bits of a digit
MOST_DIGITS = 7  # of a count, whose differences have at most 33 bits


def parse_counts(text: str | bytes) -> np.ndarray:
    """The counts of a compressed text: (n,) int64; DataError where it is none."""
    try:
        body = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise DataError("run lengths with a character beyond ASCII") from error
    digits = np.frombuffer(body, dtype=np.uint8).astype(np.int64) - FIRST
    ends = np.flatnonzero(digits & MORE == 0)  # the last digit of each count
    if len(digits) and (digits.min() < 0 or digits.max() >= 2 * MORE or digits[-1] & MORE):
        raise DataError("run lengths in a text that is none of COCO's, or is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    if len(ends) and lengths.max() > MOST_DIGITS:
        raise DataError("run lengths with a count beyond 31 bits")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & (MORE - 1)) << (BITS * place), starts) if len(ends) else digits
    values = values - np.where(digits[ends] & SIGN, 1 << (BITS * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def format_counts(counts: np.ndarray) -> str:
    """The compressed text of counts (n,)."""
    rest = np.array(counts, dtype=np.int64)
    rest[3:] -= counts[1:-2]
    characters = np.zeros((len(rest), MOST_DIGITS), dtype=np.uint8)
    written = np.zeros(characters.shape, dtype=bool)
    unfinished = np.ones(len(rest), dtype=bool)
    for place in range(MOST_DIGITS):
        digit = rest & (MORE - 1)
        rest >>= BITS
        more = unfinished & (rest != np.where(digit & SIGN, -1, 0))
        characters[:, place] = digit + MORE * more + FIRST
        written[:, place] = unfinished
        unfinished = more
    return characters[written].tobytes().decode("ascii")


def check_counts(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """The counts, which cover an image of H x W pixels; DataError otherwise."""
    if len(counts) and counts.min() < 0:
        raise DataError(f"run lengths with a count of {counts.min()}; they are at least 0")
    if (covered := int(counts.sum())) != height * width:
        raise DataError(f"run lengths of {covered} pixels, where {height} x {width} are {height * width}")
    return counts


def encode_mask(mask: np.ndarray) -> np.ndarray:
    """The counts (n,) int64 of a mask (H, W) of zeros and others."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], [0] if len(flat) and flat[0] else [], changes, [len(flat)]])
    return np.diff(edges.astype(np.int64))


def decode_mask(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask (H, W) bool of counts that cover it."""
    return _ones(counts).reshape(width, height).T


def _ones(counts: np.ndarray) -> np.ndarray:
    """(pixels,) bool of runs."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


class Extent(NamedTuple):
    """The rows and columns of a mask's pixels, first and one after the last; all 0 where it has none."""

    top: int
    left: int
    bottom: int
    right: int


def extent(counts: np.ndarray, height: int) -> Extent:
    """The tight box of a mask, by its counts."""
    edges = np.cumsum(counts)
    starts, lengths = edges[:-1:2], counts[1::2]
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    if not len(starts):
        return Extent(0, 0, 0, 0)
    last = starts + lengths - 1
    left, right = int(starts[0]) // height, int(last[-1]) // height + 1
    if (
        starts // height != last // height
    ).any():  # from the last row of a column on to the first of the next
        return Extent(0, left, height, right)
    return Extent(int((starts % height).min()), left, int((last % height).max()) + 1, right)


def row_runs(counts: np.ndarray, height: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What becomes of a mask when an image takes `rows` and `columns` of it, as runs row by row.

    Args:
        counts: of the mask, column by column; H = `height`.
        rows: (h,) the row of the image for each row of the result, in ascending order.
        columns: (w,) likewise, in ascending order or, mirrored, in descending order.

    Returns (n,) int32: lengths of runs, alternately of zeros and of ones, beginning with zeros, which cover
    h x w. No more than the part that the mask's tight box fills is ever a bitmap.
    """
    box = extent(counts, height)
    down = np.flatnonzero((rows >= box.top) & (rows < box.bottom))
    across = np.flatnonzero((columns >= box.left) & (columns < box.right))
    if not len(down) or not len(across):
        return np.array([len(rows) * len(columns)], dtype=np.int32)
    bits = _ones_of_columns(counts, height, box.left, box.right)
    inner = bits[columns[across] - box.left][:, rows[down]].T
    return _runs(inner, int(down[0]), int(across[0]), len(rows), len(columns))


def _ones_of_columns(counts: np.ndarray, height: int, left: int, right: int) -> np.ndarray:
    """The columns from `left` to before `right` of a mask: (columns, H) bool."""
    edges = np.cumsum(counts).clip(left * height, right * height)
    return _ones(np.diff(edges, prepend=left * height)).reshape(right - left, height)


def _runs(inner: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """The runs, row by row, of an image that has the mask `inner` from (top, left) on and zeros elsewhere."""
    line = inner.shape[1] + 1  # with a zero before each row, so that runs end in their row
    padded = np.zeros((inner.shape[0] + 1, line), dtype=bool)
    padded[:-1, 1:] = inner
    flat = padded.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1])  # before the first pixel of a run and at the last, in turn
    rows, columns = np.divmod(edges, line)
    places = (rows + top) * width + columns + left
    starts, ends = places[::2], places[1::2]
    joined = np.flatnonzero(ends[:-1] == starts[1:])  # where a run goes on in the next row
    edges = np.stack([np.delete(starts, joined + 1), np.delete(ends, joined)], 1).ravel()
    runs = np.diff(np.concatenate([[0], edges, [height * width]]))
    return runs[: len(runs) - (runs[-1] == 0)].astype(np.int32)
