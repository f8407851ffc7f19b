"""Where the samples of a split came from: the source that it was packed from, in the order of the shards.

Keys and indices do not hold the names of the source's files. They follow from the source, which must be the
one that was packed: the manifest has its digest. N = samples.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import Field
from data_shards.format.index import Manifest
from data_shards.format.samples import Samples, Source
from data_shards.pack.deleted_files import restore_deleted
from data_shards.pack.plan import PackOptions, order
from data_shards.pack.progress import read_bad


class PackedFrom(NamedTuple):
    """What a split was packed from; `ranks` (listed,) is the index in `samples` of each key."""

    samples: Samples
    options: PackOptions
    fields: tuple[Field, ...]
    ranks: np.ndarray


class Origins(NamedTuple):
    """Names inside of a source: of every sample in the order of the indices (N), and of the damaged ones."""

    names: list[str]
    left_out: list[str]


def packed_from(directory: Path, manifest: Manifest, source: Source, otherwise: str = "") -> PackedFrom:
    """The samples of a source in the order of a split.

    Args:
        directory: the split.
        manifest: of the split.
        source: of the images.
        otherwise: what to do if the split was packed from another source, for the message.

    Raises:
        DataError: the split was not packed from this source, or the source has changed since.
    """
    samples = source.splits.get(manifest.split)
    if samples is None or manifest.layout != "packed" or manifest.parent:
        raise DataError(f"{directory}: was not packed from {source.name}{otherwise}")
    options, digest = PackOptions.of(manifest.writer), manifest.writer.source_digest
    if (fields := options.fields(source)) != manifest.fields:
        raise DataError(f"{directory}: this source has other members; name the members that were packed")
    bad = read_bad(directory) if manifest.bad_sources else []
    samples, _ = restore_deleted(samples, bad, manifest.samples + len(bad), digest, options)
    if samples.digest != digest:
        text = f"{samples.digest[:12]}, packed was {digest[:12]}"
        raise DataError(
            f"{directory}: this source is another one, or has changed since (digest {text}); see --directory"
        )
    return PackedFrom(samples, options, fields, order(len(samples), options))


def origins(directory: Path, source: Source) -> Origins:
    """Where the samples of a split came from.

    Raises:
        DataError: the split was not packed from this source, or the source has changed since.
    """
    manifest = Manifest.load(directory)
    packed = packed_from(directory, manifest, source)
    damaged = {int(bad.key) for bad in read_bad(directory)} if manifest.bad_sources else set()
    found = Origins([], [])
    for key, i in enumerate(packed.ranks.tolist()):
        (found.left_out if key in damaged else found.names).append(packed.samples.describe(i))
    return found
