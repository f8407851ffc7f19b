"""Records of samples in files, for metrics whose records are together too large for memory.

    spool.append(position, record)   on every rank, for each sample that counts
    spool.gather(group)              then all records are on the first rank of the group
    for record in spool: ...         there, in the order of the positions, as often as needed

The files have no names, so that nothing is left behind when a process is killed. Other ranks send their
bytes: no directory has to be shared by the machines. Memory holds a place of each record, and in `gather`
CHUNK bytes of each rank.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch.distributed as dist

from data_shards.errors import DataError
from data_shards.stream.batch import Batch
from launcher.metrics.metric import MetricBase
from parallel.ranks.collectives import gather_objects, gather_to_first

CHUNK = 2**22  # bytes of each rank that travel at once


class Place(NamedTuple):
    """Where a record is in its file."""

    position: int  # of its sample
    start: int  # in bytes
    length: int


class Spool:
    """Records in a file, each beside the position of its sample.

    Args:
        directory: of the file; None is the system's directory for temporary files (TMPDIR).
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._file = _opened(directory)
        self._places: list[Place] = []
        self._end = 0

    def __len__(self) -> int:
        """The records of this rank, or of all ranks after `gather`."""
        return len(self._places)

    def append(self, position: int, record: Any) -> None:
        """Keep anything that pickles, for the sample at a position; DataError where there is no room."""
        body = pickle.dumps(record, protocol=5)
        self._write(self._end, body)
        self._places.append(Place(position, self._end, len(body)))
        self._end += len(body)

    def gather(self, group: dist.ProcessGroup | None = None) -> None:
        """Move the records of all ranks of a group to its first one; every rank calls it together."""
        lengths = gather_objects(self._end, group)
        if len(lengths) == 1:
            return
        places, bases = gather_to_first(self._places, group), [0, *accumulate(lengths)]
        with self._file as own:
            self._file = _opened(self._directory)
            for start in range(0, max(lengths), CHUNK):
                own.seek(start)
                for base, part in zip(bases, gather_to_first(own.read(CHUNK), group), strict=False):
                    self._write(base + start, part)
        self._places = [
            place._replace(start=base + place.start)
            for base, of_rank in zip(bases, places, strict=False)
            for place in of_rank
        ]
        self._end = bases[-1] if self._places else 0

    def _write(self, start: int, body: bytes) -> None:
        try:
            self._file.seek(start)
            self._file.write(body)
            self._file.flush()
        except OSError as error:
            directory = self._directory or tempfile.gettempdir()
            raise DataError(
                f"the records of an evaluation cannot be written to {directory} ({error.strerror}): make "
                "room, or set TMPDIR to another directory"
            ) from error

    def __iter__(self) -> Iterator[Any]:
        """The records in the order of their positions, one of each position: the first one."""
        last = None
        for place in sorted(self._places, key=lambda one: one.position):
            if place.position != last:
                self._file.seek(place.start)
                yield pickle.loads(self._file.read(place.length))
            last = place.position


def _opened(directory: Path | None) -> IO[bytes]:
    """A new file without a name."""
    return tempfile.TemporaryFile(dir=directory)


class SpoolMetric(MetricBase):
    """A metric of the records of all samples that keeps them in files, see `GatherMetric` for small ones.

    A subclass has `primary`, `higher_is_better`, `line`, `record` and `values`.

    Args:
        directory: of the files; None is the system's directory for temporary files.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.spool = Spool(directory)

    def record(self, prediction: Any, batch: Batch, row: int) -> Any:
        """The record of a sample of a batch: anything that pickles."""
        raise NotImplementedError

    def values(self, records: Iterable[Any]) -> dict[str, Any]:
        """The values by name that follow from the records of all samples, in the order of positions.

        Args:
            records: read from a file each time they are iterated over.
        """
        raise NotImplementedError

    def update(self, prediction: Any, batch: Batch) -> None:
        """Keep the records of the samples that count."""
        for row, weight in enumerate(batch.weights.tolist()):
            if weight:
                self.spool.append(int(batch.positions[row]), self.record(prediction, batch, row))

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Send the records of all ranks to the first rank of the group."""
        self.spool.gather(group)

    def compute(self) -> dict[str, Any]:
        """The values of all ranks."""
        return self.values(self.spool)
