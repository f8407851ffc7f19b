"""The manifest of a split, from any storage."""

import json
from pathlib import Path

from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, Field
from data_shards.format.index import MANIFEST_NAME, Manifest, check_shards
from data_shards.storage import storage_for
from data_shards.storage.base import LocalStorage, Storage, check_access, check_file_name
from data_shards.storage.retry import Retries
from data_shards.storage.telemetry import Telemetry


def load_manifest(
    storage: Storage, retries: Retries, wanted: tuple[Field, ...] = IMAGE_AND_LABEL
) -> Manifest:
    """Read the manifest; DataError when it is missing, damaged or of another schema.

    Args:
        storage: of the split; it is probed for random access.
        retries: for I/O errors.
        wanted: the members that its samples should have, for messages.
    """
    if isinstance(storage, LocalStorage):
        manifest = Manifest.load(storage.directory, wanted)
    else:
        where = storage.describe(MANIFEST_NAME)
        body = retries(lambda: storage.read(MANIFEST_NAME), lambda: where)
        try:
            manifest = Manifest.from_dict(json.loads(body), Path(where), wanted)
        except ValueError as error:
            raise DataError(f"{where}: cannot read it ({error})") from error
    for shard in manifest.shards:
        check_file_name(shard.name)
    first = manifest.shards[0].name
    retries(lambda: storage.probe(first), lambda: storage.describe(first))
    return manifest


def checked_manifest(
    location: str | Path,
    deadline_s: float = 30.0,
    *,
    cached: bool = True,
    wanted: tuple[Field, ...] = IMAGE_AND_LABEL,
) -> Manifest:
    """The manifest at a path or URL. Of a local split, every shard is checked to be present and complete.

    Args:
        location: a path or URL.
        deadline_s: seconds for which I/O errors are retried.
        cached: whether there is a cache for complete shards, which some storages need.
        wanted: the members that its samples should have, for messages.

    Raises:
        DataError: what is wrong with the split, or that its storage needs a cache.
    """
    storage = storage_for(location, deadline_s)
    manifest = load_manifest(storage, Retries(deadline_s, Telemetry()), wanted)
    check_access(storage, cached=cached)
    if isinstance(storage, LocalStorage):
        check_shards(manifest, storage.directory)
    return manifest
