"""Pack a split of a source into shards: `manifest = pack(source, "train", "data/x/train", seed=0)`.

Shard i is a slice of one seeded permutation of the split, so it is a pure function of (source, options, i):
any number of processes and of tasks on any machines writes the same bytes, and an interrupted run is
continued. Damaged sources are unknown until they are read: they keep their indices in the permutation
and are left out of their shards, so even they change nothing about any other sample.

    .NAME.HOST.PID.tmp   a file being written; fsynced, then renamed, so that NAME is complete or absent
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import Field
from data_shards.format.files import BusyError, only_writer, write_errors
from data_shards.format.index import MANIFEST_NAME, Manifest, read_json
from data_shards.format.samples import BadSource, Samples, Source
from data_shards.pack.deleted_files import resume_plan
from data_shards.pack.plan import PLAN_NAME, PackOptions, claim, cut, make_plan, order
from data_shards.pack.process_pool import map_in_order
from data_shards.pack.progress import (
    BAD_NAME,
    PartFile,
    finish,
    read_records,
    records_of,
    refuse_too_many,
    refused,
    unfinished,
    write_bad,
)
from data_shards.pack.shard import ShardJob, ShardRecord, make_shard
from parallel.durable import sweep_temporaries

Progress = Callable[[int, int], None]  # (samples done, samples in all), first with those of an earlier run


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """The work of one task of a pack: shards `task[0]`, `task[0] + task[1]`, ... of those at `starts`.

    `gone` are the keys of files that were refused by an earlier run and have been deleted since.
    """

    out: Path
    samples: Samples
    num_classes: int
    fields: tuple[Field, ...]
    options: PackOptions
    starts: Sequence[int]
    ranks: np.ndarray
    task: tuple[int, int]
    gone: frozenset[str] = frozenset()

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(self.task[0], len(self.starts) - 1, self.task[1])

    def job(self, shard: int, record: ShardRecord | None = None) -> ShardJob:
        """One shard, with its samples."""
        start, stop = self.starts[shard], self.starts[shard + 1]
        return ShardJob(
            directory=self.out,
            shard=shard,
            first_key=start,
            samples=self.samples.select(self.ranks[start:stop]),
            recipe=self.options.recipe(),
            num_classes=self.num_classes,
            fields=self.fields,
            record=record,
        )


def pack(
    source: Source,
    split: str,
    out_dir: str | Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Manifest:
    """Write `split` of `source` to `out_dir` as shards, indices and, last, a manifest, which is returned.

    Run again after an interruption, it keeps the finished shards whose bytes are as they were; run again
    after the end, it returns the manifest that is there. `options` are those of PackOptions; `progress(done,
    total)` is called with samples. DataError: a bad option, another pack in `out_dir` (finished, partial or
    running), no permission or space, too many damaged sources.
    """
    out = Path(out_dir)
    with write_errors(out):
        finished = _write_task(source, split, out, PackOptions(**options), (0, 1), workers, progress)
        if finished is None:
            with only_writer(out):
                finished = finish(out)
    return finished


def pack_task(
    source: Source,
    split: str,
    out_dir: str | Path,
    task: tuple[int, int],
    *,
    workers: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Manifest | None:
    """Write every n-th shard from the i-th, for `task` = (i, n): a pack that is shared by several jobs.

    The task that finds all shards written writes the manifest and returns it, the others return None.
    DataError as `pack`.
    """
    i, n = task
    if not 0 <= i < n:
        raise DataError(
            f"task ({i}/{n}) must be i/n with i in 0 ... n - 1; for Slurm: --array=0-{max(n, 1) - 1}"
        )
    out = Path(out_dir)
    with write_errors(out):
        finished = _write_task(source, split, out, PackOptions(**options), task, workers, progress)
        return finished or _finish_if_last(out)


def merge(out_dir: str | Path, max_bad: float | None = None) -> Manifest:
    """Write the manifest of a pack whose tasks are all done, or return the one that is there.

    DataError names the shards that are missing.
    """
    out = Path(out_dir)
    if not out.is_dir() or not (out / PLAN_NAME).exists():
        return Manifest.load(out)
    with write_errors(out), only_writer(out):
        return finish(out, max_bad)


def _finish_if_last(out: Path) -> Manifest | None:
    """The manifest, when no other task is running or has work left."""
    try:
        with only_writer(out):
            if not (out / PLAN_NAME).exists():
                return Manifest.load(out)
            return None if unfinished(out, read_json(out / PLAN_NAME)) else finish(out)
    except BusyError:
        return None  # it will find the same when it ends


def _write_task(
    source: Source,
    split: str,
    out: Path,
    options: PackOptions,
    task: tuple[int, int],
    workers: int,
    progress: Progress | None,
) -> Manifest | None:
    """Write the shards of a task; the manifest if there was nothing to do for anybody."""
    if workers < 1:
        raise DataError(f"workers ({workers}) must be at least 1")
    plan = make_plan(source, split, options)
    with only_writer(out, shared=task[1] > 1):
        plan, samples = resume_plan(out, plan, source.splits[split], options)
        ranks = order(len(samples), options)
        fields = options.fields(source)
        starts, finished = claim(out, plan, partial(cut, samples, ranks, options, fields))
        if finished:
            return finished
        sweep_temporaries(out, partial(_belongs, task=task))
        work = PackTask(
            out=out,
            samples=samples,
            num_classes=len(source.classes),
            fields=fields,
            options=options,
            starts=starts,
            ranks=ranks,
            task=task,
            gone=frozenset(plan.get("gone", ())),
        )
        _write(work, workers, progress)
    return None


def _belongs(name: str, task: tuple[int, int]) -> bool:
    """Whether a file is this task's to write, by its name up to the first dot."""
    return int(name) % task[1] == task[0] if name.isdigit() else task[1] == 1


def _write(work: PackTask, workers: int, progress: Progress | None) -> None:
    known = read_records(work.out)
    if (work.out / MANIFEST_NAME).exists():
        known = records_of(Manifest.load(work.out), work.out, work.starts) | known
    part = PartFile(work.out, work.task, [known[shard] for shard in work.shards if shard in known])
    total = sum(work.starts[shard + 1] - work.starts[shard] for shard in work.shards)
    bad: list[BadSource] = []
    done = 0
    for record in map_in_order(make_shard, _jobs(work, known), workers):
        part.add(record)
        bad += (source for source in record.bad if source.key not in work.gone)
        try:
            refuse_too_many(work.out, bad, work.options.max_bad, len(work.samples))
        except DataError as error:
            write_bad(work.out, refused(work.out))
            raise DataError(f"{error}; {work.out / BAD_NAME} lists all") from None
        done += work.starts[record.shard + 1] - work.starts[record.shard]
        if progress:
            progress(done, total)


def _jobs(work: PackTask, known: dict[int, ShardRecord]) -> Iterator[ShardJob]:
    """One job per shard, made lazily, since a job carries its samples."""
    return (work.job(shard, known.get(shard)) for shard in work.shards)
