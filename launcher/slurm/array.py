"""Job arrays: a list of overrides, a run directory for each, one submission for all."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.slurm.absolute_paths import with_absolute_paths
from launcher.slurm.script import index_width
from swin_moe.text_files import read_text
from swin_moe.yaml_files import parse_yaml


def read_tasks(file: Path) -> tuple[tuple[str, ...], ...]:
    """The overrides of every task: a line of the file each, or an item of a YAML list (lists or mappings).

    A text such as `a=1,2 b=3,4` that is no file is a grid: here of four tasks.

    Raises:
        ConfigError: the file cannot be read, or has no tasks.
    """
    if "=" in str(file) and not file.exists():
        return tuple(_grid(str(file)))
    try:
        text = read_text(file)
        tasks = _of_yaml(text) if file.suffix in (".yaml", ".yml") else _of_lines(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--array {file}: {reason}") from None
    if not tasks:
        raise ConfigError(f"--array {file} holds no task: write the overrides of one a line")
    return tuple(tasks)


def configurations(
    config: Path, overrides: Sequence[str], tasks: Sequence[Sequence[str]]
) -> tuple[Path, list[RunConfig]]:
    """The run directory of the whole array, and what every task trains below it.

    Raises:
        ConfigError: with the errors of all tasks, each by its number.
    """
    above = Path(with_absolute_paths(load_config(config, overrides)).run_dir)
    errors: list[str] = []
    configs: list[RunConfig] = []
    for index, (task, directory) in enumerate(zip(tasks, directories(above, len(tasks)), strict=True)):
        try:
            if any(override.partition("=")[0].strip() == "run_dir" for override in task):
                raise ConfigError(f"run_dir cannot be overridden: every task has its own, {directory}")
            loaded = with_absolute_paths(load_config(config, [*overrides, *task]))
            configs.append(replace(loaded, run_dir=str(directory)))
        except ConfigError as error:
            errors.append(named(index, task, error))
    if errors:
        raise ConfigError("\n".join(errors))
    return above, configs


def directories(run: Path, tasks: int) -> list[Path]:
    """RUN/000, RUN/001 ...: the run directories of an array."""
    return [run / f"{index:0{index_width(tasks)}d}" for index in range(tasks)]


def named(index: int, task: Sequence[str], error: Exception) -> str:
    """An error with the task that it is of."""
    return f"task {index} ({shlex.join(task)}): {error}"


def _grid(text: str) -> Iterator[tuple[str, ...]]:
    """Every combination of the values of `a=1,2 b=3,4`, the last option varying fastest."""
    options = (part.partition("=") for part in text.split())
    return product(*([f"{name}={value}" for value in values.split(",")] for name, _, values in options))


def _of_lines(text: str) -> list[tuple[str, ...]]:
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [tuple(line) for line in lines if line]


def _of_yaml(text: str) -> list[tuple[str, ...]]:
    listed = parse_yaml(text)
    if not isinstance(listed, list):
        raise ConfigError("must hold a list, an item a task")
    return [_of_item(item) for item in listed]


def _of_item(item: Any) -> tuple[str, ...]:
    if isinstance(item, dict):
        return tuple(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in item.items())
    if isinstance(item, list) and all(isinstance(text, str) for text in item):
        return tuple(item)
    raise ConfigError(f"a task must be a list of overrides or a mapping of options (got {item!r})")
