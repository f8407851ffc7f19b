"""The named members of a sample. Each is a file in the tar; a number (codec "int") is in the index, too.

    KEY.jpg  KEY.mask.png  KEY.boxes.json  KEY.cls      the members image, mask, boxes and label of a sample

The codecs themselves are in `data_shards/codecs`: reading, checking and copying a tar needs none of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_shards.errors import DataError
from data_shards.format.image_names import IMAGE_SUFFIXES

Members = Mapping[str, bytes | int]
SCALAR = "int"  # the codec of the members whose value lies in the index
SCALAR_EXTENSION = "cls"
NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
MAX_FIELDS = 64


class Sample(NamedTuple):
    """A sample: its key, without a dot, and its members."""

    key: str
    members: Members


@dataclass(frozen=True)
class Field:
    """A member of every sample: its name, and the codec that encodes and checks it.

    `extension` is what follows "KEY." in the name of its file. "" is the rule of packed tars: KEY.jpg or .png
    for the image named `image`, KEY.cls for the number named `label`, otherwise KEY.NAME.jpg, KEY.NAME.cls.
    """

    name: str
    codec: str
    extension: str = ""

    @property
    def is_scalar(self) -> bool:
        """Whether the value itself lies in the index."""
        return self.codec == SCALAR

    @property
    def prefix(self) -> str:
        """What its extension begins with where it has none of its own: "NAME." or ""."""
        return "" if self in IMAGE_AND_LABEL else f"{self.name}."

    def reason(self, text: str) -> str:
        """Why the member is bad, with its name, which an image and its label do without."""
        return text if self in IMAGE_AND_LABEL else f"{self.name}: {text}"

    def extension_of(self, body: bytes) -> str:
        """The extension of the file that holds `body` in a packed tar."""
        if self.extension:
            return self.extension
        return self.prefix + (SCALAR_EXTENSION if self.is_scalar else image_suffix(body))

    def accepts(self, extension: str) -> bool:
        """Whether a packed tar may hold this member under `extension`."""
        if self.extension or not extension.startswith(self.prefix):
            return extension == self.extension
        suffix = extension[len(self.prefix) :]
        return suffix == SCALAR_EXTENSION if self.is_scalar else suffix in IMAGE_SUFFIXES


IMAGE_AND_LABEL = (Field("image", "image"), Field("label", SCALAR))
"""The members of a data set for classification: exactly these are written as version 1 of the index."""
IMAGE_AND_MASK = (Field("image", "image"), Field("mask", "label_image"))
"""The members of a data set for segmentation: the mask has a class id for every pixel of the image."""
IMAGE_AND_OBJECTS = (Field("image", "image"), Field("annotations", "objects"))
"""The members of a data set for detection: the record has a box, and perhaps a mask, for every object."""
SIZES = (Field("height", SCALAR), Field("width", SCALAR))
"""The height and width of the image in pixels, which packing and indexing record on request."""

VIDEO_FACTS = (Field("frames", SCALAR), Field("fps_millis", SCALAR), *SIZES)
"""What is known of a video: its frames, 1000 times its frames per second, height and width in pixels."""
VIDEO_AND_LABEL = (Field("video", "video", "mp4"), Field("label", SCALAR), *VIDEO_FACTS)
"""The members of a data set of videos: KEY.mp4, the class of the video, and its facts."""


def files_of(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The members that are files and no numbers."""
    return tuple(field for field in fields if not field.is_scalar)


def has_label(fields: Sequence[Field]) -> bool:
    """Whether the samples have the number `label`, the index of a class."""
    return any(field.name == "label" and field.is_scalar for field in fields)


def check_fields(fields: Sequence[Field]) -> None:
    """DataError unless names and extensions are well formed and differ, and one member is a file."""
    for field in fields:
        if not NAME.fullmatch(field.name):
            raise DataError(f"member {field.name!r}: a name is lower-case letters, digits and _, at most 31")
        if field.extension and not (EXTENSION.fullmatch(field.extension) and len(field.extension) <= 60):
            raise DataError(f"member {field.name}: {field.extension!r} must be an extension such as mask.png")
    for what, values in {
        "name": [field.name for field in fields],
        "extension": [field.extension for field in fields if field.extension],
    }.items():
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise DataError(f"two members have the {what} {twice[0]}; give each its own")
    if not files_of(fields):
        raise DataError("a sample needs a member that is a file: image, json, array ...")
    if len(fields) > MAX_FIELDS:
        raise DataError(f"{len(fields)} members, at most {MAX_FIELDS}")


def image_suffix(body: bytes) -> str:
    """The suffix that fits an image's first bytes; "jpg" when they tell nothing else."""
    if body[:4] == b"\x89PNG":
        return "png"
    return "webp" if body[:4] == b"RIFF" and body[8:12] == b"WEBP" else "jpg"


def split_name(name: str) -> tuple[str, str]:
    """Key and extension: "a/b" and "mask.png" of "a/b.mask.png"; "" where the name has no key."""
    directory, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    key = directory + slash + base
    return key, extension.lower() if key else ""
