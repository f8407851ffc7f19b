"""A job runs elsewhere: places in a configuration that are relative to here become absolute."""

import os
from dataclasses import replace
from pathlib import Path

from data_shards.storage import SCHEME
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig

HEADS = ("strict", "replace")  # train.pretrained_head that is no file


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration for any working directory; URLs, `pipe:` and data.cache stay as they are.

    Raises:
        ConfigError: the weights to start from are not there.
    """
    train = config.train
    if train.pretrained is not None:
        train = replace(train, pretrained=_existing("train.pretrained", train.pretrained))
    if train.pretrained_head not in HEADS:
        train = replace(train, pretrained_head=_existing("train.pretrained_head", train.pretrained_head))
    val = None if config.data.val is None else _absolute(config.data.val)
    data = replace(config.data, train=_absolute(config.data.train), val=val)
    return replace(config, run_dir=os.path.abspath(config.run_dir), data=data, train=train)


def _absolute(place: str) -> str:
    scheme = SCHEME.match(place)
    if scheme is None:
        return os.path.abspath(place)
    if scheme[1].lower() == "file" and not place[5:].startswith("/"):
        return "file:" + os.path.abspath(place[5:])
    return place


def _existing(option: str, place: str) -> str:
    if SCHEME.match(place) is None and not Path(place).exists():
        raise ConfigError(f"{option} ({place}): no such file")
    return _absolute(place)
