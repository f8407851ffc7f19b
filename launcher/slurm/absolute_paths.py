"""A job runs elsewhere: places in a configuration that are relative to here become absolute."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.order.sets import TrainSet
from data_shards.storage import SCHEME
from launcher.config.load import ConfigError
from launcher.config.schema import DataConfig, RunConfig
from launcher.tasks.registry import task_spec

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
    config = _with_files_of_task(config)
    data = replace(config.data, train=_absolute_train(config.data), val=_absolute_val(config.data))
    return replace(config, run_dir=os.path.abspath(config.run_dir), data=data, train=train)


def _with_files_of_task(config: RunConfig) -> RunConfig:
    """With the files and folders that options of the task name; a name of another kind stays as it is."""
    spec = task_spec(config.task)
    for option in spec.paths:
        config = _changed(config, [spec.name, *option.split(".")])
    return config


def _changed(options: Any, path: Sequence[str]) -> Any:
    """Options in which the value at a path is absolute, if it is a place on this disk."""
    name, *rest = path
    value = getattr(options, name, None)
    if rest:
        return options if value is None else replace(options, **{name: _changed(value, rest)})
    if isinstance(value, str) and Path(value).exists():
        return replace(options, **{name: os.path.abspath(value)})
    return options


def _absolute_train(data: DataConfig) -> str | dict[str, TrainSet]:
    if isinstance(data.train, str):
        return _absolute(data.train)
    return {name: replace(one, path=_absolute(one.path)) for name, one in data.train.items()}


def _absolute_val(data: DataConfig) -> str | dict[str, str] | None:
    if isinstance(data.val, dict):
        return {name: _absolute(place) for name, place in data.val.items()}
    return None if data.val is None else _absolute(data.val)


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
