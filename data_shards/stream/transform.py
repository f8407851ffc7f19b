"""What the samples of a stream become: the interface, and the transforms of images.

Legend: h, w height and width of the images of a batch in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import Members
from data_shards.format.rng import DrawKey
from data_shards.image.decode import decode_image
from data_shards.image.geometry import ImageTransform
from data_shards.stream.collate import Collator, Fixed, Value, image_tensor

Example = Mapping[str, Value]  # of one sample: a value for each collator, by name
NO_LABEL = -1  # where a label is optional, see `PerhapsLabelled`


class Transform(Protocol):
    """What a sample becomes. The decode threads call it at the same time.

    A transform may have `optional_fields`, too: members that it gets of the splits that have them.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """The members that it reads; no others are read from storage."""

    @property
    def collators(self) -> Mapping[str, Collator]:
        """How each of its values becomes a tensor of the batch, by name."""

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """The values of a sample: a function of its members and of draws by `key` alone.

        Args:
            members: those of `fields`; a file as it is stored, to be decoded by its codec.
            key: of the sample's draws; further views have `key._replace(view=1)`, 2 ...

        Raises:
            DataError: the sample is bad. The stream names and replaces it.
        """


@dataclass(frozen=True)
class Images:
    """The member `image`, cut and resized by `geometry`: image (3, h, w) uint8."""

    geometry: ImageTransform

    @property
    def fields(self) -> tuple[str, ...]:
        """The image."""
        return ("image",)

    @property
    def collators(self) -> Mapping[str, Collator]:
        """One size for all."""
        return {"image": image_tensor(self.geometry.sides)}

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """The decoded image."""
        return {"image": decode_image(file_of(members, "image"), self.geometry, key)}


class LabelledImages(Images):
    """Images, and the number `label` of each."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The image and its label."""
        return ("image", "label")

    @property
    def collators(self) -> Mapping[str, Collator]:
        """One size for all, and label int64."""
        return {**super().collators, "label": Fixed((), np.int64)}

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """The decoded image, and the label."""
        return {**super().__call__(members, key), "label": number_of(members, "label")}


@dataclass(frozen=True)
class PerhapsLabelled:
    """What `transform` gives, and the number `label` where the split has it: NO_LABEL elsewhere."""

    transform: Transform
    optional_fields: ClassVar[tuple[str, ...]] = ("label",)

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of the transform."""
        return self.transform.fields

    @property
    def collators(self) -> Mapping[str, Collator]:
        """Those of the transform, and label int64."""
        return {**self.transform.collators, "label": Fixed((), np.int64)}

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """The values of the transform, and the label."""
        return {**self.transform(members, key), "label": label_or_none(members)}


def file_of(members: Members, name: str) -> bytes:
    """A member that is a file; DataError where it is a number."""
    if isinstance(body := members[name], bytes):
        return body
    raise DataError(f"member {name} is a number, not a file")


def number_of(members: Members, name: str) -> int:
    """A member that is a number; DataError where it is a file."""
    if isinstance(value := members[name], bytes):
        raise DataError(f"member {name} is a file, not a number")
    return value


def label_or_none(members: Members) -> int:
    """The number `label`, NO_LABEL of samples without one."""
    return number_of(members, "label") if "label" in members else NO_LABEL
