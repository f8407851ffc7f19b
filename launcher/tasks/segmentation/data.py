"""What segmentation is trained and evaluated on: images and label images, the members `image` and `mask`."""

from data_shards.format.fields import IMAGE_AND_MASK
from data_shards.image.resize_crop import ResizeCropTransform
from data_shards.stream.pixel_labels import PixelLabelCrops, PixelLabelImages
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.segmentation.options import SegmentationOptions
from launcher.tasks.spec import DataSpec


def train_data(config: RunConfig) -> DataSpec:
    """Random crops at random scales."""
    options = options_of(config, SegmentationOptions)
    crop = ResizeCropTransform(
        image_size=config.model.image_sides,
        long_side=options.long_side,
        short_side=options.short_side,
        ratio_range=options.ratio_range,
        flip_prob=config.data.flip_probability,
    )
    transform = PixelLabelCrops(
        crop=crop,
        num_classes=config.model.num_classes,
        max_share=options.max_class_share,
        antialias=options.antialias,
    )
    return DataSpec(transform=transform, members=IMAGE_AND_MASK)


def eval_images(config: RunConfig) -> PixelLabelImages:
    """Complete images at each ratio, and their label images at their own size."""
    options = options_of(config, SegmentationOptions)
    return PixelLabelImages(
        num_classes=config.model.num_classes,
        long_side=options.long_side if options.eval_fit else None,
        short_side=options.short_side if options.eval_fit else None,
        ratios=options.eval_ratios,
        antialias=options.antialias,
    )


def eval_data(config: RunConfig) -> DataSpec:
    """Complete images."""
    return DataSpec(transform=eval_images(config), members=IMAGE_AND_MASK)
