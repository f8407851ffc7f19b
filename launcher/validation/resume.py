"""Whether a run may go on from its newest checkpoint: its options by their classes, its classes, its data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from data_shards.format.classes import differences
from data_shards.order.state import trained_manifests
from data_shards.storage.manifest import checked_manifest
from launcher.config.load import ConfigError, dump_config
from launcher.config.schema import RunConfig
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import Kind
from launcher.validation.resume_policy import (
    changed_options,
    configuration,
    newest_manifest,
    recorded_classes,
)
from launcher.validation.train_sets import train_manifests
from parallel.ranks.collectives import RanksError, agree
from swin_moe.yaml_files import parse_yaml


def check_resume(config: RunConfig, checkpoints: Path, *, allow: bool) -> list[str]:
    """Compare a run's configuration with its newest checkpoint's; on many ranks all call it together.

    Args:
        config: of now.
        checkpoints: the directory of the run's checkpoints; without any, nothing has changed.
        allow: let options of training change (`--allow-change`).

    Returns:
        A line for each option of training that has changed.

    Raises:
        ConfigError: with every option that may not change, or not without `--allow-change`.
    """
    try:
        lines, *_ = agree(lambda: _check(config, checkpoints, allow), (ValueError, OSError))
    except RanksError as error:
        raise ConfigError(str(error)) from error
    return lines


def _check(config: RunConfig, checkpoints: Path, allow: bool) -> list[str]:
    if (newest := newest_manifest(checkpoints)) is None:
        return []
    path, manifest = newest
    differing = changed_options(configuration(manifest), parse_yaml(dump_config(config)))
    by_kind = {kind: [str(c) for c in differing if c.kind == kind] for kind in get_args(Kind)}
    by_kind["fixed"] += _other_classes(config, manifest)
    by_kind["training"] += _other_validation_split(config, manifest)
    if by_kind["fixed"]:
        raise ConfigError(
            f"{path} is of another run: {'; '.join(by_kind['fixed'])}. Nothing overrides this: set them as "
            "they were, or start a new run_dir (from these weights: swin-moe export, then --pretrained)"
        )
    if by_kind["training"] and not allow:
        raise ConfigError(
            f"the configuration is not that of {path}: {'; '.join(by_kind['training'])}. To go on with what "
            "is set now: --allow-change"
        )
    return by_kind["training"]


def _other_classes(config: RunConfig, manifest: Mapping[str, Any]) -> list[str]:
    """The model's outputs stand for the classes of its training, which older checkpoints do not name."""
    before, data = recorded_classes(manifest), config.data
    if before is None or not task_spec(config.task).names_classes:
        return []
    sources = data.val_places if data.trains_on_tars else data.train_places
    if not sources:
        return []
    option, source = next(iter(sources.items()))  # the classes of the first set are those of the model
    differing = differences(checked_manifest(source).classes, before)
    return (
        [f"the classes of {option} ({source}) are not those of the checkpoint: {differing}"]
        if differing
        else []
    )


def _other_validation_split(config: RunConfig, manifest: Mapping[str, Any]) -> list[str]:
    """Shards may move, and the stream's state knows those of training; this knows those of validation."""
    before, data = _validation_manifests(manifest), config.data
    if not before or not data.val_places or data.trains_on_tars:
        return []
    trained = trained_manifests(manifest.get("state", {}).get("data", {}))
    if trained != [one.digest for one in train_manifests(data).values()]:
        return []  # which is the stream's to refuse
    now = {option: checked_manifest(place).digest for option, place in data.val_places.items()}
    first = next(iter(now))
    pairs = {option: (before[option], now[option]) for option in now if option in before}
    pairs[first] = next(iter(before.values())), now[first]  # runs are compared by the first set
    return [
        f"{option}: manifest {str(old)[:12]} in the checkpoint, {new[:12]} now: figures will not compare"
        for option, (old, new) in pairs.items()
        if old != new
    ]


def _validation_manifests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each validation set's manifest by its option, the first one first."""
    if "val_manifests" in manifest:
        return dict(manifest["val_manifests"])
    digest = manifest.get("val_manifest")  # of versions with one set
    return {} if digest is None else {"data.val": digest}
