"""Rules of runs whose backbone is an LR-Net (`model.lr_net`)."""

from collections.abc import Iterator, Sequence

from launcher.config.schema import RunConfig
from launcher.tasks.dense_rules import norm_group_errors, norm_layout_errors
from launcher.tasks.registry import task_spec

NORM_GROUP = "model.lr_net.norm_group_images"


def lr_net_errors(config: RunConfig) -> Iterator[str]:
    """What an LR-Net does not go with, whatever the ranks."""
    if (lr_net := config.model.lr_net) is None:
        return
    if not task_spec(config.task).takes_lr_net:
        yield f"task={config.task} trains a Swin and no LR-Net: set model.lr_net=null"
    if config.train.compile:
        yield "train.compile compiles blocks of a Swin: set it to false for an LR-Net (model.lr_net)"
    if not lr_net.norm_frozen:
        yield from norm_group_errors(config, NORM_GROUP, lr_net.norm_group_images)


def lr_net_layout_errors(config: RunConfig, world_size: int) -> Sequence[str]:
    """Where the groups of its batch norms do not lie on the ranks."""
    lr_net = config.model.lr_net
    if lr_net is None or lr_net.norm_frozen:
        return []
    return norm_layout_errors(config, world_size, NORM_GROUP, lr_net.norm_group_images)
