"""Preflight of the shards: every rank reads and decodes a sample of its slice, with the run's own reader."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.format.rng import DrawKey
from data_shards.format.tar_names import names_tars
from data_shards.order.global_order import GlobalOrder
from data_shards.storage import storage_for
from data_shards.storage.base import check_access
from data_shards.storage.manifest import load_manifest
from data_shards.storage.retry import PERMANENT, Retries
from data_shards.storage.telemetry import Telemetry
from data_shards.stream.patterns import expand, redacted
from data_shards.stream.reader import SampleError, ShardReader
from data_shards.stream.transform import Transform
from launcher.config.schema import RunConfig
from launcher.preflight.report import ProbeContext, ProbeResults, Verdict
from launcher.tasks.registry import task_spec


class Place(NamedTuple):
    """A split of a run, and what reads it."""

    option: str
    split: str
    transform: Transform

    @property
    def is_val(self) -> bool:
        """Whether it is evaluated, and not trained on."""
        return self.option.startswith("data.val")


def places(config: RunConfig) -> list[Place]:
    """The splits that are trained on, those of data.train first, and those of data.val."""
    spec, data = task_spec(config.task), config.data
    train, evaluated = spec.train_data(config), spec.eval_data(config).transform
    return [
        *(Place(option, split, train.transform) for option, split in data.train_places.items()),
        *(Place(part.option, part.split, part.transform) for part in train.beside.values()),
        *(Place(option, split, evaluated) for option, split in data.val_places.items()),
    ]


def probe(context: ProbeContext) -> dict[str, Any] | None:
    """For each split the manifest's digest and what was read, or the error and whether it may pass."""
    config = context.config
    if config is None:
        return None
    deadline_s = min(context.deadline_s, config.data.retry_s)
    return {place.option: _try(config, place, context, deadline_s) for place in places(config)}


def evaluate(results: ProbeResults) -> Verdict:
    """Every rank reads the same split, and reads it at all."""
    assert results.config is not None
    verdict = Verdict()
    message = []
    for option in results.values[0]:
        values = [value[option] for value in results.values]
        verdict.failures += results.each(_error(option, value, fatal=True) for value in values)
        verdict.warnings += results.each(_error(option, value, fatal=False) for value in values)
        digests = [value.get("digest") for value in values]
        if len({digest for digest in digests if digest}) > 1:
            verdict.failures.append(
                f"{option}: manifest {results.spread(digest and digest[:12] for digest in digests)}; "
                "every node must see the same shards"
            )
        message.append(f"{option.removeprefix('data.')} {values[0].get('message', 'unreadable')}")
    verdict.message = f"{', '.join(message)}; samples read and decoded"
    return verdict


def _error(option: str, value: dict[str, Any], *, fatal: bool) -> str | None:
    return f"{option}: {value['error']}" if "error" in value and value["fatal"] == fatal else None


def _try(config: RunConfig, place: Place, context: ProbeContext, deadline_s: float) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    try:
        if names_tars(place.split):
            return _of_tars(place.split, context.ranks.rank)
        storage, retries = storage_for(place.split, deadline_s), Retries(deadline_s, Telemetry())
        manifest = load_manifest(storage, retries)
        entry |= {"digest": manifest.digest, "message": manifest.digest[:12]}
        check_access(storage, cached=config.data.cache is not None)
        if not storage.random_access:
            return entry | {"message": f"{manifest.digest[:12]} in whole shards, not sampled"}
        ranks = context.ranks
        shard, row = first_sample(manifest, config, place, ranks.rank, ranks.world_size)
        reader = ShardReader(storage, manifest, retries=retries)
        try:
            _decode(reader, shard, row, place.transform)
        finally:
            reader.close()
    except DataError as error:
        return entry | {"error": str(error), "fatal": _is_fatal(error, config, place)}
    return entry | {"message": f"{manifest.digest[:12]} of {len(manifest.shards)} shard(s)"}


def first_sample(
    manifest: Manifest, config: RunConfig, place: Place, rank: int, world_size: int
) -> tuple[int, int]:
    """Shard and row of the first sample that a rank reads; near it in one of several training splits."""
    sizes = manifest.samples_per_shard
    if not place.is_val:
        order, batch_size = GlobalOrder(sizes, config.seed), config.train.global_batch_size
        first = rank * (batch_size // world_size)
        shards, rows = order.locate(order.global_batch(0, batch_size)[first : first + 1])
        return int(shards[0]), int(rows[0])
    sample = min(rank * config.train.eval_batch_size, manifest.samples - 1)
    ends = np.cumsum(sizes)
    shard = int(np.searchsorted(ends, sample, side="right"))
    return shard, int(sample - ends[shard] + sizes[shard])


def _decode(reader: ShardReader, shard: int, row: int, transform: Transform) -> None:
    reader.check_members(transform.fields)
    members = reader.read(shard, row, transform.fields)
    try:
        transform(members, DrawKey(0, 0))
    except DataError as error:
        raise reader.bad_sample(shard, row, f"cannot be used: {error}") from error


def _of_tars(place: str, rank: int) -> dict[str, Any]:
    """Tars without a manifest: that the first bytes of a local one can be read."""
    urls = expand(place)
    url = urls[rank % len(urls)]
    message = f"{len(urls)} tars without a manifest, not sampled"
    try:
        if Path(url).is_file():
            with open(url, "rb") as file:
                if not file.read(512):
                    return {"error": f"{url}: is empty", "fatal": True}
    except OSError as error:
        return {"error": f"{redacted(url)}: {error.strerror}", "fatal": True}
    return {"message": message}


def _is_fatal(error: DataError, config: RunConfig, place: Place) -> bool:
    """Not a sample that the run replaces, nor I/O that failed for seconds where a run tries for minutes."""
    if isinstance(error, SampleError):
        return place.is_val or config.data.bad_samples == "stop"
    cause = error.__cause__
    return not isinstance(cause, OSError) or isinstance(cause, PERMANENT)
