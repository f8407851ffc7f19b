"""Which images an artifact is checked on, and calibrated on: those of the run unless others are named."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.format.classes import numbered
from data_shards.format.tar_names import names_tars
from data_shards.storage.manifest import checked_manifest
from launcher.config.load import load_config
from launcher.config.schema import DataConfig
from launcher.deploy.card import ArtifactError
from launcher.deploy.split import Split
from launcher.evaluation.judging import OTHER_DATA
from launcher.evaluation.loaded import LoadedModel
from launcher.validation.label_spaces import Classes, fit, of_data
from parallel.checkpoint.manifest import read_manifest
from swin_moe.weights.native import checkpoint_in
from swin_moe.yaml_files import parse_yaml


@dataclass(frozen=True, kw_only=True)
class Places:
    """The splits of a run, and what is said in their place."""

    val: str | None = None
    train: str | None = None
    match_classes: bool = False
    retry_s: float = DataConfig.retry_s
    named: bool = False  # whether a person named `val`


def places_of(source: str | Path, config: str | Path | None, val: str | None, train: str | None) -> Places:
    """The splits of a run, of a checkpoint, or of the recipe of weights.

    Args:
        source: of the weights.
        config: their recipe.
        val: named in the place of data.val.
        train: named in the place of data.train.

    Raises:
        ConfigError: the recipe cannot be used.
    """
    found = _recorded(source, config)
    return Places(
        val=val or _first(found.get("val")),
        train=train or _first(found.get("train")),
        match_classes=bool(found.get("match_classes", False)),
        retry_s=float(found.get("retry_s", DataConfig.retry_s)),
        named=val is not None,
    )


def _recorded(source: str | Path, config: str | Path | None) -> dict[str, Any]:
    """The section `data` of whatever describes the run."""
    if config is not None:
        return asdict(load_config(config).data)
    checkpoint = checkpoint_in(Path(source))
    run = parse_yaml(read_manifest(checkpoint).get("config", "")) if checkpoint else None
    data = run.get("data") if isinstance(run, dict) else None
    return data if isinstance(data, dict) else {}


def _first(sets: Any) -> str | None:
    """The place of data.val or data.train, of several sets that of the first, by which runs are compared."""
    if isinstance(sets, dict):
        first = next(iter(sets.values()), None)
        return _first(first.get("path") if isinstance(first, dict) else first)
    return sets if isinstance(sets, str) else None


def judged_split(places: Places, loaded: LoadedModel, limit: int | None) -> Split | None:
    """The split on which accuracies are compared; None where the run has none.

    Raises:
        ConfigError: its classes are not those of the model.
        DataError: it has no manifest that can be read.
    """
    if places.val is None:
        return None
    manifest = checked_manifest(places.val)
    names, count = loaded.classes, loaded.model.config.num_classes
    unnamed = "" if names else "they were not recorded"
    wanted = Classes(of="the model", names=names or numbered(count), unnamed=unnamed)
    found = of_data("--data" if places.named else "data.val", places.val, manifest)
    matched = fit(found, wanted, match=places.match_classes, otherwise=OTHER_DATA)
    return Split(
        place=places.val,
        sides=loaded.model.config.image_sides,
        inputs=loaded.inputs,
        classes=matched.mapped_to,
        limit=limit,
        retry_s=places.retry_s,
    )


def drawn_split(place: str | None, what: str, option: str, places: Places, loaded: LoadedModel) -> Split:
    """A split from which images are drawn.

    Args:
        place: of the split.
        what: its images are for, in a message.
        option: that names another one.
        places: of the run.
        loaded: the model.

    Raises:
        ArtifactError: there is none, or it cannot be drawn from.
        DataError: it has no manifest that can be read.
    """
    if place is None:
        raise ArtifactError(f"there are no images for {what}: name shards with {option} DIR")
    if names_tars(place):
        raise ArtifactError(
            f"{place} has no manifest, so that no images for {what} can be drawn: `swin-moe shards index` "
            f"writes it, or name other shards with {option} DIR"
        )
    checked_manifest(place)
    return Split(
        place=place, sides=loaded.model.config.image_sides, inputs=loaded.inputs, retry_s=places.retry_s
    )
