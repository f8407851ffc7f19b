"""Writing one checkpoint: every rank writes its own file, all agree after each phase, rank 0 commits.

The files are those of torch.distributed.checkpoint, planned by each rank alone and described by rank 0: no
collective runs while a file is written, so that a rank that fails there gives an answer and blocks no other.
Checksums are computed of the bytes as they are written; reading the files back would prove no more.
"""

import contextlib
import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, _StoragePrefix
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from parallel.checkpoint.commit import commit, open_partial, path_of
from parallel.checkpoint.manifest import CheckpointError, describe
from parallel.ranks.collectives import RanksError, agree, gather_objects
from parallel.ranks.mesh import Mesh

T = TypeVar("T")

ENTRY_BYTES = 2048  # at most, of a tensor's frame in its file, in .metadata and in the manifest
BUFFERED, WRITEBACK = 2**20, 16 * 2**20  # bytes


@dataclass(frozen=True, kw_only=True)
class WrittenFiles:
    """The files that one rank wrote."""

    plan: SavePlan
    results: list[WriteResult]
    files: dict[str, dict[str, Any]]  # size and sha256 of each, as in the manifest
    shapes: dict[str, list[int]]  # of its tensors, by global name


def write(
    directory: Path,
    step: int,
    tensors: dict[str, Tensor],
    mesh: Mesh,
    record: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> int:
    """Write and commit one checkpoint from host memory; every rank calls it together.

    Args:
        directory: of all checkpoints of the run.
        step: optimizer steps taken.
        tensors: those that this rank owns, by global name.
        mesh: the layout.
        record: JSON-able, kept in the manifest beside ours.
        group: of all ranks, for tensors on the CPU; None is the default group.

    Returns:
        Bytes of all files together.

    Raises:
        CheckpointError: a rank could not write; the partial checkpoint is deleted, all others stay.
    """
    final = path_of(directory, step)
    partial = final.with_suffix(".tmp")
    needed = sum(gather_objects(_bytes_needed(tensors, record), group))
    dims = mesh.dims
    layout = {
        "world_size": dims.world_size,
        "ep_size": dims.ep_size,
        "expert_slices": dims.expert_tensor_parallel_size,  # its name in manifests of every version
    }

    def prepare() -> None:
        if mesh.is_first:
            open_partial(partial)
            check_free_space(partial, needed)

    def finish(parts: list[WrittenFiles]) -> int:
        if not mesh.is_first:
            return 0
        files = {name: entry for part in parts for name, entry in part.files.items()}
        files |= _write_metadata(partial, [part.plan for part in parts], [part.results for part in parts])
        shapes = {name: shape for part in parts for name, shape in part.shapes.items()}
        commit(partial, final, {"step": step, "files": files, "tensors": shapes, **layout, **record})
        return sum(entry["bytes"] for entry in files.values())

    try:
        on_all_ranks(prepare, f"prepare {partial}", group)
        parts = on_all_ranks(lambda: write_rank_files(partial, tensors, mesh.rank), f"write {partial}", group)
        return on_all_ranks(lambda: finish(parts), f"commit {final}", group)[0]
    except CheckpointError:
        if mesh.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        gather_objects(None, group)  # no rank goes on before it is deleted
        raise


def write_tensors(
    directory: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write and commit a checkpoint of tensors in one process, without an engine.

    Args:
        directory: of all checkpoints of a run.
        step: optimizer steps taken.
        tensors: fp32 or int64, by the names of a checkpoint.
        record: JSON-able, kept in the manifest: the run's state, configuration and versions.
    """
    final = path_of(directory, step)
    partial = final.with_suffix(".tmp")
    try:
        open_partial(partial)
        with warnings.catch_warnings():  # that it takes this for the only process, which it is
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(partial), no_dist=True)
        manifest = {
            "step": step,
            "files": describe([*sorted(partial.glob("*.distcp")), partial / ".metadata"]),
            "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "world_size": 1,
            "ep_size": 1,
            "expert_slices": 1,
            **record,
        }
        commit(partial, final, manifest)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        raise CheckpointError(f"could not write {final}: {error}") from error
    return final


def on_all_ranks(action: Callable[[], T], what: str, group: dist.ProcessGroup | None = None) -> list[T]:
    """Run a part of saving or loading on every rank; if it fails on one, all raise."""
    try:
        return agree(action, (OSError, ValueError, RuntimeError, CheckpointException), group)
    except RanksError as error:
        raise CheckpointError(f"could not {what}: {error}") from error


def _bytes_needed(tensors: dict[str, Tensor], record: dict[str, Any]) -> int:
    """At least what this rank's files will take."""
    return sum(tensor.nbytes + ENTRY_BYTES for tensor in tensors.values()) + len(str(record))


def check_free_space(partial: Path, needed: int) -> None:
    """Refuse to write what the file system cannot hold."""
    system = os.statvfs(partial)
    free = system.f_bavail * system.f_frsize
    if system.f_blocks and free < needed:  # some network file systems report no size
        raise CheckpointError(
            f"{needed} bytes are needed and {free} are free on the file system of {partial.parent}"
        )


def write_rank_files(partial: Path, tensors: dict[str, Tensor], rank: int) -> WrittenFiles:
    """Write this rank's tensors durably into a file of its own."""
    planner, storage = DefaultSavePlanner(), _storage(partial)
    planner.set_up_planner(dict(tensors), is_coordinator=rank == 0)
    plan = replace(planner.create_local_plan(), storage_data=_StoragePrefix(f"__{rank}_"))
    with _first_error(storage), _without_crc32():
        results = storage.write_data(plan, planner).wait()
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return WrittenFiles(plan=plan, results=results, files=storage.fs.written, shapes=shapes)


def _write_metadata(
    partial: Path, plans: list[SavePlan], results: list[list[WriteResult]]
) -> dict[str, dict[str, Any]]:
    """Write the one file that describes all others."""
    storage = _storage(partial)
    _, metadata = DefaultSavePlanner().create_global_plan(plans)
    with _first_error(storage):
        storage.finish(metadata, results)
    return storage.fs.written


def _storage(partial: Path) -> Any:
    # No copies ahead: the tensors are in host memory, and a copier on a new thread would use GPU 0's stream.
    storage = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
    storage.fs = _Hashing()
    return storage


@contextlib.contextmanager
def _first_error(storage: Any) -> Iterator[None]:
    """Raise the error of the file system instead of the one that torch's writer makes of it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise (storage.fs.error or error) from error


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    """Make torch's writer leave out its own checksums, which no reader uses: a third of its time."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class _Hashing(FileSystem):
    """Files whose size and sha256 are known when they are written."""

    def __init__(self) -> None:
        self.written: dict[str, dict[str, Any]] = {}
        self.error: OSError | None = None

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        file = _HashedFile(path)
        try:
            with file:
                yield file
        except OSError as error:
            self.error = error
            raise
        finally:
            self.error = file.error or self.error
        self.written[Path(path).name] = {"bytes": file.size, "sha256": file.digest.hexdigest()}

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class _HashedFile(io.BufferedWriter):
    """A new file that is written from its beginning to its end."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(io.FileIO(path, "x"), BUFFERED)
        self.digest, self.size = hashlib.sha256(), 0
        self._written_back = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it."""
        try:
            super().write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        if self.size - self._written_back >= WRITEBACK:
            self._start_writeback()
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Flush it, if it is open: torch's wrapper does so once more when it is collected after an error."""
        if not self.closed:
            super().flush()

    def _start_writeback(self) -> None:
        """Start writing to the disk while the next bytes are hashed.

        POSIX_FADV_DONTNEED is the way to do this from Python: dirty pages are written, and stay in memory.
        """
        if hasattr(os, "posix_fadvise"):
            self.flush()
            os.posix_fadvise(
                self.fileno(), self._written_back, self.size - self._written_back, os.POSIX_FADV_DONTNEED
            )
        self._written_back = self.size
