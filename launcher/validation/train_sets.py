"""The training sets of a run in numbers: their manifests, their shares, and the images of an epoch."""

from collections.abc import Mapping

from data_shards.format.index import Manifest
from data_shards.order.sets import Mixture, mixture
from data_shards.storage.manifest import checked_manifest
from launcher.config.schema import DataConfig


def train_manifests(data: DataConfig) -> dict[str, Manifest]:
    """The manifest of each training set by its option; none of tars without one.

    Raises:
        DataError: a set that cannot be read.
    """
    if data.trains_on_tars:
        return {}
    return {option: checked_manifest(place) for option, place in data.train_places.items()}


def mixture_of(data: DataConfig, manifests: Mapping[str, Manifest]) -> Mixture:
    """The weights of the training sets and the images of an epoch.

    Args:
        data: of the run.
        manifests: of all training sets, by option.
    """
    samples = [manifest.samples for manifest in manifests.values()]
    if isinstance(data.train, str):
        return Mixture(weights=(1,), samples=samples[0])
    return mixture(data.train, samples)


def images_per_epoch(data: DataConfig) -> int | None:
    """The images of an epoch; None of tars without a manifest, which nobody counted.

    Raises:
        DataError: a set that cannot be read.
    """
    manifests = train_manifests(data)
    return mixture_of(data, manifests).samples if manifests else None
