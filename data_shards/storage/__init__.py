"""The storage of a split: a directory, an object store or web server, or the output of a command.

/data/x/train   file:/data/x/train         LocalStorage: reads anywhere in a file
s3://b/x/train  gs://b/x  https://host/x   RemoteStorage: fsspec, ranged reads; the extra [remote]
pipe:aws s3 cp s3://b/x/train/{} -         PipeStorage: the output of the command for the file {}
"""

import re
from pathlib import Path

from data_shards.errors import DataError
from data_shards.storage.base import REMOTE, LocalStorage, Storage
from data_shards.storage.pipe import PipeStorage
from data_shards.storage.remote import RemoteStorage

SCHEMES = ("file", *REMOTE, "pipe")
SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")


def storage_for(location: str | Path | Storage, deadline_s: float = 300.0) -> Storage:
    """The storage at a path or URL.

    Args:
        location: a path, a URL of an allowed scheme, or a storage, which is returned.
        deadline_s: seconds after which a command of `pipe:` is ended.

    Raises:
        DataError: the scheme is not allowed.
    """
    if isinstance(location, Storage):
        return location
    scheme = SCHEME.match(str(location))
    if isinstance(location, Path) or not scheme:
        return LocalStorage(Path(location))
    if (kind := scheme[1].lower()) not in SCHEMES:
        raise DataError(
            f"{location}: scheme {kind} is not allowed; use a path or one of {', '.join(SCHEMES)}"
        )
    if kind == "pipe":
        return PipeStorage(str(location)[5:], deadline_s)
    if kind == "file":
        return LocalStorage(Path(re.sub(r"^file:(//)?", "", str(location))))
    return RemoteStorage(str(location))
