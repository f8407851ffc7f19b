"""Saving beside training: a step waits for the copy to host memory, a thread writes and commits.

    main thread    step 40 | copy | step 41 | step 42 | ...
    saver's thread               | write, agree, commit, prune |  -> SaveResult, at the next `poll`

A save reads in this order:
1. `CheckpointSaver.start`: `StagingBuffers.copy` (staging.py) copies the tensors that this rank owns;
2. `_Save` runs `write` (write.py): every rank writes its files, the ranks agree, rank 0 describes them;
3. `commit` (commit.py): manifest, rename, pointer; then `prune` deletes old checkpoints;
4. `CheckpointSaver.poll` returns the `SaveResult`.

The thread's collectives run in a group of their own, so that they never mix with those of training. At most
one save runs at a time. A save that fails is a result like any other, the same on every rank: the run goes
on, and the checkpoints before it stay.
"""

import json
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from parallel.checkpoint.commit import prune
from parallel.checkpoint.manifest import CheckpointError
from parallel.checkpoint.staging import NO_STATE, StagingBuffers
from parallel.checkpoint.write import write
from parallel.ranks.collectives import new_group
from parallel.ranks.mesh import Mesh
from parallel.zero.master_weights import MasterWeights

PATIENCE = timedelta(minutes=30)  # for the slowest rank's file; a rank that dies is noticed at once


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """How one save ended, the same on all ranks."""

    step: int
    error: str | None = None  # why there is no such checkpoint
    warning: str | None = None  # on rank 0: it is committed, but old ones could not be deleted
    bytes: int = 0  # of its files
    copy_s: float = 0.0  # of reading and copying to host memory, on this rank
    stall_s: float = 0.0  # that training waited for it, on this rank
    save_s: float = 0.0  # from its beginning to the commit


class CheckpointSaver:
    """Writes the checkpoints of one run, one at a time; all ranks make and call it together.

    Args:
        directory: of all checkpoints of the run.
        mesh: the layout.
        asynchronous: whether `start` returns before the files are written.
        keep_last: checkpoints that stay, besides
        keep_every: those at multiples of so many steps, if any.
    """

    def __init__(
        self,
        directory: Path,
        mesh: Mesh,
        *,
        asynchronous: bool = True,
        keep_last: int = 2,
        keep_every: int | None = None,
    ) -> None:
        self.directory, self.mesh = directory, mesh
        self._asynchronous = asynchronous
        self._keep_last, self._keep_every = keep_last, keep_every
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = new_group(backend="gloo", timeout=PATIENCE) if several else None
        self._buffers = StagingBuffers()
        self._save: _Save | None = None
        self._unreported: list[SaveResult] = []

    @property
    def writing(self) -> bool:
        """Whether a save is being written at this moment."""
        return self._save is not None and self._save.is_alive()

    def start(
        self,
        step: int,
        masters: MasterWeights,
        record: dict[str, Any],
        state: Mapping[str, Tensor] = NO_STATE,
        best: Collection[int] = (),
    ) -> None:
        """Save the state as it is now; waits first for the save before it, if that still runs.

        Args:
            step: optimizer steps taken.
            masters: what to save; only read here.
            record: JSON-able, kept in the manifest.
            state: of the task, by name, as `PersistentState` holds it; only read here.
            best: steps whose checkpoints stay when this one is there.

        Raises:
            StateError: on all ranks; a buffer or the state differs between ranks.
        """
        self._collect()
        began_s = time.monotonic()
        tensors = self._buffers.copy(masters, self.mesh, state)
        # a copy: training goes on and may change what `record` refers to
        snapshot = json.loads(json.dumps({"adam_steps": masters.adam_steps, **record}))
        self._save = _Save(self, step, tensors, snapshot, frozenset(best), began_s)
        if not self._asynchronous:
            self._collect()

    def poll(self) -> list[SaveResult]:
        """Return the saves that ended since the last call, without waiting: ranks may differ in the step."""
        if self._save is not None and not self._save.is_alive():
            self._collect()
        results, self._unreported = self._unreported, []
        return results

    def finish(self) -> list[SaveResult]:
        """Wait for the save that runs, if any, and return what `poll` does."""
        self._collect()
        return self.poll()

    def _collect(self) -> None:
        """Wait for the save that runs, if any, and keep its result for `poll`."""
        if self._save is not None:
            save, self._save = self._save, None
            self._unreported.append(save.result())

    def _write(
        self, step: int, tensors: dict[str, Tensor], record: dict[str, Any], best: Collection[int]
    ) -> dict[str, Any]:
        """Write, commit and prune; returns fields of the result."""
        try:
            size = write(self.directory, step, tensors, self.mesh, record, self._group)
        except CheckpointError as error:
            return {"error": str(error)}
        try:
            if self.mesh.is_first:
                prune(self.directory, self._keep_last, self._keep_every, best)
        except (OSError, CheckpointError) as error:
            return {"bytes": size, "warning": f"old checkpoints could not be deleted: {error}"}
        return {"bytes": size}


class _Save(threading.Thread):
    """One save. It starts at once; `result` waits for it and raises what went wrong in it."""

    def __init__(
        self,
        saver: CheckpointSaver,
        step: int,
        tensors: dict[str, Tensor],
        record: dict[str, Any],
        best: Collection[int],
        began_s: float,
    ) -> None:
        super().__init__(name=f"save-{step}", daemon=True)
        self._step, self._began_s = step, began_s
        self._work = lambda: saver._write(step, tensors, record, best)
        self._fields: dict[str, Any] = {}
        self._bug: BaseException | None = None
        self.start()
        self._copy_s = time.monotonic() - began_s

    def run(self) -> None:
        try:
            self._fields = self._work()
        except BaseException as error:  # raised again by `result`
            self._bug = error
        self._fields["save_s"] = time.monotonic() - self._began_s

    def result(self) -> SaveResult:
        """Wait for the end.

        Raises:
            Anything but a failure to write: a bug, or a lost connection to another rank.
        """
        waited_s = time.monotonic()
        self.join()
        stall_s = self._copy_s + time.monotonic() - waited_s
        if self._bug is not None:
            raise self._bug
        return SaveResult(step=self._step, copy_s=self._copy_s, stall_s=stall_s, **self._fields)
