"""A committed checkpoint as tensors by name, each read on access: no model, no process group.

    stored = CheckpointReader(Path("runs/x/checkpoints/step-00000040"))
    stored["master/norm.weight"]       # one tensor of memory, whatever layout wrote it
    stored.kind("exp_avg")             # {"norm.weight": "exp_avg/norm.weight", ...}

verify.py checks the files before, and `write_tensors` (write.py) makes a checkpoint of tensors.
"""

import io
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from parallel.checkpoint.manifest import CheckpointError, read_manifest
from parallel.checkpoint.unpickler import DAMAGE, SafeReader

METADATA = ".metadata"  # the file of torch.distributed.checkpoint that describes the others


class CheckpointReader(Mapping[str, Tensor]):
    """The tensors of one committed checkpoint; its files are assumed to be intact, see verify.py.

    Raises:
        CheckpointError: there is no checkpoint, or, of a tensor, it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.shapes: dict[str, list[int]] = self.manifest["tensors"]

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        file, offset, length = self._place(name)
        try:
            with (self.path / file).open("rb") as stream:
                stream.seek(offset)
                packed = io.BytesIO(stream.read(length))
            tensor = torch.load(packed, map_location="cpu", weights_only=True)
        except DAMAGE as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read, {file} is damaged: {error}") from None
        if not isinstance(tensor, Tensor) or list(tensor.shape) != self.shapes[name]:
            raise CheckpointError(f"{self.path}: {name} in {file} is not what the manifest says")
        return tensor

    def kinds(self) -> list[str]:
        """The kinds of tensors in the checkpoint: `master`, `exp_avg`, `buffer` ..."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self.shapes))

    def kind(self, kind: str) -> dict[str, str]:
        """The names of the tensors of one kind, by the names of what they are of."""
        named = {name.partition("/")[2]: name for name in self.shapes if name.partition("/")[0] == kind}
        return dict(sorted(named.items()))

    @cached_property
    def metadata(self) -> Metadata:
        """The metadata of torch.distributed.checkpoint, read by SafeUnpickler."""
        return read_metadata(self.path)

    @cached_property
    def _places(self) -> dict[str, Any]:
        return {index.fqn: info for index, info in (self.metadata.storage_data or {}).items()}

    def _place(self, name: str) -> tuple[str, int, int]:
        """File, offset and length of a tensor; the file must be one that the manifest vouches for."""
        info = self._places.get(name)
        if info is None or info.relative_path not in self.manifest["files"]:
            raise CheckpointError(f"{self.path}: no file of the manifest holds {name}")
        return info.relative_path, info.offset, info.length


def read_metadata(path: Path) -> Metadata:
    """The description of a checkpoint's files.

    Raises:
        CheckpointError: it is missing or damaged, or names what no checkpoint needs.
    """
    try:
        return SafeReader(path).read_metadata()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
