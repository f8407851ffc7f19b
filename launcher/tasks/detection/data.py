"""What detection is trained and evaluated on: the members `image` and `annotations`.

Legend: H, W height and width of an image at its own size; h, w of what the model sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from data_shards.format.fields import IMAGE_AND_OBJECTS, Members
from data_shards.format.rng import DrawKey
from data_shards.image.multi_scale import MultiScaleTransform
from data_shards.image.pixels import image_size
from data_shards.stream.collate import Canvas, Collator, MultipleOf, SmallestOf
from data_shards.stream.detection import ObjectImages, ObjectViews
from data_shards.stream.transform import Example, file_of
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.detection.options import DetectionOptions
from launcher.tasks.spec import DataSpec


def train_data(config: RunConfig) -> DataSpec:
    """Images at random sizes, perhaps mirrored."""
    options = options_of(config, DetectionOptions)
    views = MultiScaleTransform(
        short_sides=options.short_sides,
        long_side=options.long_side,
        crop_prob=options.crop_probability,
        # without crops, sides that the bounds allow in any case
        crop_short_sides=options.crop_short_sides if options.crop_probability else options.short_sides,
        crop_sides=options.crop_sides,
        flip_prob=config.data.flip_probability,
    )
    transform = ObjectViews(
        views=views,
        num_classes=config.model.num_classes,
        masks=options.head.masks,
        canvas=canvas_of(options),
    )
    return DataSpec(transform=transform, members=IMAGE_AND_OBJECTS)


def eval_data(config: RunConfig) -> DataSpec:
    """Complete images."""
    return DataSpec(transform=eval_images(config), members=IMAGE_AND_OBJECTS)


def predict_data(config: RunConfig) -> DataSpec:
    """Complete images without annotations."""
    return DataSpec(transform=ImagesAlone(eval_images(config)), members=IMAGE_AND_OBJECTS[:1])


def eval_images(config: RunConfig) -> ObjectImages:
    """Complete images and the records of their objects."""
    options = options_of(config, DetectionOptions)
    return ObjectImages(
        num_classes=config.model.num_classes,
        short_side=options.eval_short_side,
        long_side=options.long_side,
        canvas=canvas_of(options),
    )


def canvas_of(options: DetectionOptions) -> Canvas:
    """The canvas of an image, which its size alone decides."""
    return SmallestOf(options.canvases) if options.canvases else MultipleOf(options.canvas_multiple)


@dataclass(frozen=True)
class ImagesAlone:
    """What `ObjectImages` makes of an image of which nothing else is known: image and source_size."""

    images: ObjectImages

    @property
    def fields(self) -> tuple[str, ...]:
        """The image."""
        return ("image",)

    @property
    def collators(self) -> Mapping[str, Collator]:
        """Those of an evaluation, without the record."""
        return {name: self.images.collators[name] for name in ("image", "source_size")}

    def __call__(self, members: Members, key: DrawKey) -> Example:
        """The image, resized; no draw is made."""
        body = file_of(members, "image")
        return self.images.resized(body, *image_size(body))
