"""What an evaluation of SimMIM reads."""

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.image_data import eval_images, eval_perhaps_labelled_images
from launcher.tasks.spec import DataSpec
from swin_moe.heads.simmim_config import SimMIMConfig


def eval_data(config: RunConfig) -> DataSpec:
    """The centres of images; their labels too, where there are any and neighbours are asked for."""
    if options_of(config, SimMIMConfig).eval_neighbours:
        return eval_perhaps_labelled_images(config)
    return eval_images(config)
