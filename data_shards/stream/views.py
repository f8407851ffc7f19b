"""Several views of an image, each cut and resized by draws of its own, from one decoding.

Legend: V views of a sample, h, w their height and width in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from data_shards.errors import DataError
from data_shards.format.fields import Members
from data_shards.format.rng import DrawKey
from data_shards.image.decode import decode_views, stack_views
from data_shards.image.geometry import ImageTransform
from data_shards.stream.collate import Collator, image_tensor
from data_shards.stream.transform import Example, file_of


@dataclass(frozen=True)
class ImageViews:
    """The member `image`, cut and resized by each of `geometries`: image (V, 3, h, w) uint8.

    View 0 has the draws of `Images`, and its pixels too unless another view needs the JPEG at a larger scale
    (`decode_geometries`). DataError when the geometries give several sizes, or there are none.
    """

    geometries: tuple[ImageTransform, ...]

    def __post_init__(self) -> None:
        sizes = {geometry.sides for geometry in self.geometries}
        if len(sizes) != 1:
            raise DataError(f"views of {len(sizes)} sizes {sorted(sizes)} cannot be stacked; give them one")

    @property
    def fields(self) -> tuple[str, ...]:
        """The image."""
        return ("image",)

    @property
    def collators(self) -> Mapping[str, Collator]:
        """One size for all."""
        return {"image": image_tensor(self.geometries[0].sides, len(self.geometries))}

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """The views of the decoded image."""
        keys = [key._replace(view=view) for view in range(len(self.geometries))]
        return {"image": stack_views(decode_views(file_of(members, "image"), self.geometries, keys))}
