"""Reads the metadata of a checkpoint without trusting it: SAFE_GLOBALS lists all that it may name."""

import pickle
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta

from parallel.checkpoint.manifest import CheckpointError

SAFE_GLOBALS = {  # all that a .metadata written by this project names
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "int64"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # as Python 3.13 names it
}
DAMAGE = (  # what damaged bytes make an unpickler or torch.load raise
    *(OSError, ValueError, RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError),
    *(AssertionError, MemoryError, pickle.UnpicklingError),
)


class SafeReader(dcp.FileSystemReader):
    """Reads checkpoints without unpickling freely: the metadata may name plain data types only.

    Raises:
        CheckpointError: the metadata is missing or damaged, or names what no checkpoint needs.
    """

    _metadata: Metadata | None = None  # read once, for all loads from one checkpoint

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = self._read()
        assert self._metadata.storage_meta is not None
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata

    def _read(self) -> Metadata:
        try:
            with (Path(self.path) / ".metadata").open("rb") as file:
                metadata = SafeUnpickler(file).load()
        except CheckpointError:
            raise
        except DAMAGE as error:
            raise CheckpointError(f".metadata is damaged: {error}") from None
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f".metadata is damaged: it holds {type(metadata).__name__}, no description")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        return metadata


class SafeUnpickler(pickle.Unpickler):
    """Refuses every global that a description of fp32 and int64 tensors does not need."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        if name not in SAFE_GLOBALS.get(module, ()):
            raise _refused(f"{module}.{name}")
        return super().find_class(module.removesuffix("._local"), name)


def _memory_format(*arguments: Any) -> Any:
    """Stand in for getattr, by which Python up to 3.11.3 pickles a member of an enumeration."""
    members = _MEM_FORMAT_ENCODING.__members__
    if len(arguments) != 2 or arguments[0] is not _MEM_FORMAT_ENCODING or arguments[1] not in members:
        raise _refused("builtins.getattr")
    return members[arguments[1]]


def _refused(name: str) -> CheckpointError:
    return CheckpointError(f"its .metadata names {name}, which no checkpoint needs: refused")
