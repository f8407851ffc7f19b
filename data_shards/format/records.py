"""The records of an index, for the members of a sample."""

from collections.abc import Sequence

import numpy as np

from data_shards.format.fields import IMAGE_AND_LABEL, Field

MEMBER = np.dtype([("offset", "<u8"), ("size", "<u4"), ("xxh3", "<u8")])
_IMAGE_1 = np.dtype(
    {
        "names": list(MEMBER.names or ()),
        "formats": ["<u8", "<u4", "<u8"],
        "offsets": [0, 8, 16],
        "itemsize": 24,
    }
)
RECORD = np.dtype(
    {"names": ["image", "label"], "formats": [_IMAGE_1, "<u4"], "offsets": [0, 12], "itemsize": 24}
)
"""A record of version 1: offset u64, size u32, label u32, xxh3 u64; the label lies within the image."""


def record_of(fields: Sequence[Field]) -> np.dtype:
    """The record of an index: per file its offset and size in bytes and its XXH3-64, per number an int64.

    `index["image"]["offset"]` and `index["label"]` hold for both versions.
    """
    if tuple(fields) == IMAGE_AND_LABEL:
        return RECORD
    return np.dtype([(field.name, "<i8" if field.is_scalar else MEMBER) for field in fields])
