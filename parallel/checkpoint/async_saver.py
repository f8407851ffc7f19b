"""Saving beside training: a step waits for the copy to host memory, a thread writes and commits.

    main thread    step 40 | copy | step 41 | step 42 | ...
    saver's thread               | write, agree, commit, prune |  -> SaveResult, told at the next `poll`

The thread's collectives run in a group of their own, so that they never mix with those of training. At most
one save is under way. A save that fails is an outcome like any other, the same on every rank: the run goes
on, and the checkpoints before it stand.
"""

import json
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from parallel.checkpoint.commit import prune
from parallel.checkpoint.manifest import CheckpointError
from parallel.checkpoint.staging import StagingBuffers
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
    warning: str | None = (
        None  # it is committed, but the oldest could not be deleted (told by the first rank)
    )
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
        self._untold: list[SaveResult] = []

    @property
    def writing(self) -> bool:
        """Whether a save is being written at this moment."""
        return self._save is not None and self._save.is_alive()

    def start(self, step: int, masters: MasterWeights, record: dict[str, Any]) -> None:
        """Save the state as it is now; first waits for the save before it, should it still be under way.

        Args:
            step: optimizer steps taken.
            masters: what to save; only read here.
            record: JSON-able, kept in the manifest.
        """
        self._settle()
        began_s = time.monotonic()
        tensors = self._buffers.copy(masters, self.mesh)
        snapshot = json.loads(
            json.dumps({"adam_steps": masters.adam_steps, **record})
        )  # training goes on and may change what it refers to
        self._save = _Save(self, step, tensors, snapshot, began_s)
        if not self._asynchronous:
            self._settle()

    def poll(self) -> list[SaveResult]:
        """The saves that ended since the last time; never waits, so ranks may learn it at different steps."""
        if self._save is not None and not self._save.is_alive():
            self._settle()
        untold, self._untold = self._untold, []
        return untold

    def finish(self) -> list[SaveResult]:
        """Wait for the save that is under way, if any, then as `poll`."""
        self._settle()
        return self.poll()

    def _settle(self) -> None:
        if self._save is not None:
            save, self._save = self._save, None
            self._untold.append(save.outcome())

    def _write(self, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> dict[str, Any]:
        """What becomes of one save: fields of its outcome."""
        try:
            size = write(self.directory, step, tensors, self.mesh, record, self._group)
        except CheckpointError as error:
            return {"error": str(error)}
        try:
            if self.mesh.is_first:
                prune(self.directory, self._keep_last, self._keep_every)
        except (OSError, CheckpointError) as error:
            return {"bytes": size, "warning": f"old checkpoints could not be deleted: {error}"}
        return {"bytes": size}


class _Save(threading.Thread):
    """One save. It always starts at once, and whatever goes wrong in it comes out of `outcome`."""

    def __init__(
        self,
        saver: CheckpointSaver,
        step: int,
        tensors: dict[str, Tensor],
        record: dict[str, Any],
        began_s: float,
    ) -> None:
        super().__init__(name=f"save-{step}", daemon=True)
        self._step, self._began_s = step, began_s
        self._work = lambda: saver._write(step, tensors, record)
        self._fields: dict[str, Any] = {}
        self._bug: BaseException | None = None
        self.start()
        self._copy_s = time.monotonic() - began_s

    def run(self) -> None:
        try:
            self._fields = self._work()
        except BaseException as error:  # raised again where someone listens
            self._bug = error
        self._fields["save_s"] = time.monotonic() - self._began_s

    def outcome(self) -> SaveResult:
        """Wait for the end.

        Raises:
            Whatever was no failure to write: a bug, or a lost connection to another rank.
        """
        waited_s = time.monotonic()
        self.join()
        stall_s = self._copy_s + time.monotonic() - waited_s
        if self._bug is not None:
            raise self._bug
        return SaveResult(step=self._step, copy_s=self._copy_s, stall_s=stall_s, **self._fields)
