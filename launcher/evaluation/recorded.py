"""What a checkpoint says of the run that wrote it."""

from pathlib import Path
from typing import Any

from launcher.config.errors import ConfigError
from launcher.config.schema import RunConfig
from launcher.config.task_sections import of_task
from launcher.validation.resume_policy import configuration
from parallel.checkpoint.manifest import read_manifest
from swin_moe.options import from_tree
from swin_moe.weights.native import checkpoint_in


def recorded_task(source: str | Path) -> str:
    """The task of a run or a checkpoint; of other weights, which do not say, the default one.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    return str((_recorded(source) or {}).get("task", RunConfig.task))


def recorded_config(source: str | Path) -> RunConfig:
    """The configuration of a run or a checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: there is no configuration, or this version cannot use it.
    """
    tree = _recorded(source)
    if tree is None:
        raise ConfigError(f"{source} is no checkpoint with the configuration of its run")
    kind, tree, problems = of_task(tree)
    if problems:
        raise ConfigError(f"{source}: its configuration cannot be used here: {'; '.join(problems)}")
    return from_tree(kind, tree)


def _recorded(source: str | Path) -> Any:
    """The options of the run, as its checkpoint has them; None of weights and of foreign checkpoints."""
    checkpoint = checkpoint_in(Path(source))
    if checkpoint is None or "config" not in (manifest := read_manifest(checkpoint)):
        return None
    return configuration(manifest)
