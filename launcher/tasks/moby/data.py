"""Two random views of each image in training; in evaluation its centre, and one random view."""

from data_shards.format.fields import IMAGE_AND_LABEL
from data_shards.stream.transform import PerhapsLabelled
from data_shards.stream.views import ImageViews
from launcher.config.schema import RunConfig
from launcher.tasks.image_data import central_crop, random_crop
from launcher.tasks.moby.options import VIEWS
from launcher.tasks.spec import DataSpec


def train_data(config: RunConfig) -> DataSpec:
    """Random crops without labels."""
    return DataSpec(transform=ImageViews((random_crop(config),) * VIEWS), members=IMAGE_AND_LABEL[:1])


def eval_data(config: RunConfig) -> DataSpec:
    """The centre and a random crop, the same in every evaluation; labels where the split has them."""
    return DataSpec(transform=PerhapsLabelled(ImageViews((central_crop(config), random_crop(config)))))


def image_data(config: RunConfig) -> DataSpec:
    """The centres of images in files."""
    return DataSpec(transform=ImageViews((central_crop(config),)))
