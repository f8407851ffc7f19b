"""Tars without a manifest, read by the `webdataset` library, with the guarantees that it can give.

    sampling = TrainSampling(seed=0, global_batch_size=64, micro_batch_size=16)
    stream = WebDatasetStream("/data/x/{000000..000146}.tar", sampling, transform, num_classes=1000)

The first iteration logs what is not guaranteed. B = samples in a micro-batch.
"""

import logging
import random
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.codecs.registry import codec_of
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, Field, Members, check_fields
from data_shards.format.file_kinds import COMPRESSED, HEAD_BYTES, kind_of
from data_shards.format.image_names import HIDDEN, IMAGE_SUFFIXES, Skipped, is_hidden
from data_shards.format.labels import label_text, parse_label
from data_shards.format.rng import DrawKey, Purpose, fold, permutation
from data_shards.order.sampling import TrainSampling
from data_shards.order.state import other_data
from data_shards.pack.tar_members import LABELS, Extensions
from data_shards.stream.base import SingleIterator
from data_shards.stream.batch import Batch, BatchPlan
from data_shards.stream.options import DEFAULT_OPTIONS, ReadOptions, StreamOptions
from data_shards.stream.patterns import expand, redacted
from data_shards.stream.transform import Example, Transform
from data_shards.stream.workers import Fetched, prefetched

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 1000  # compressed samples
STATEMENT = """{location}: no manifest, so webdataset {version} reads its tars ({count}). Not guaranteed are
  exactly-once epochs: each rank repeats its part of the tars, shuffled in a buffer of {shuffle} samples;
    with fewer tars than ranks, every rank reads all of them;
  an exact resume: a resumed run starts a new order;
  the same samples on another number of ranks;
  integrity: there are no checksums, and a damaged header silently hides the rest of its tar;
  fault tolerance: the first bad sample or failed read ends the run, and there is no cache.
`swin-moe shards index` writes the manifest that guarantees all of them."""


class WebDatasetStream(SingleIterator):
    """This rank's micro-batches of tars with KEY.jpg and KEY.cls, without end: the interface of TrainStream.

    `fields` are the members of a sample, found by their extensions (data_shards/pack/tar_members.py).
    `num_samples` is None, since the samples were never counted. Positions are TrainStream's: step k has [kB,
    (k+1)B), B = global_batch_size, and rank r the r-th slice. The shuffle buffer holds compressed samples.
    One thread reads, so that there is one order; `options.threads` decode. Of the options, `read`,
    `quarantine` and `interleave` do not apply.

    Raises:
        DataError: no such tars, a scheme that is not allowed, a tar that cannot be read, a sample without
            image or label, a label outside num_classes, an image that cannot be decoded.
    """

    num_samples: None = None
    classes: None = None  # labels are numbers; their names are unknown

    def __init__(
        self,
        tars: str,
        sampling: TrainSampling,
        transform: Transform,
        options: StreamOptions = DEFAULT_OPTIONS,
        *,
        num_classes: int,
        fields: tuple[Field, ...] = IMAGE_AND_LABEL,
    ) -> None:
        check_fields(fields)
        if missing := [name for name in transform.fields if name not in [field.name for field in fields]]:
            raise DataError(f"{redacted(tars)}: `fields` lacks {missing[0]}, which the transform reads")
        self.fields, self._extensions = fields, Extensions(fields)
        self.grad_accum_steps = sampling.grad_accum_steps(options.dp_size)
        self.urls = expand(tars)
        self.location, self.transform, self.num_classes = tars, transform, num_classes
        self.options = replace(options, read=ReadOptions(fetch_threads=1))
        self.dp_rank, self.dp_size = options.dp_rank, options.dp_size
        self.seed = sampling.seed
        self.global_batch_size, self.micro_batch_size = sampling.global_batch_size, sampling.micro_batch_size
        self.shuffle = SHUFFLE_BUFFER if sampling.shuffle_buffer is None else sampling.shuffle_buffer
        self.samples, self.wait_s = 0, 0.0
        self._url, self._read, self._bytes = "", 0, 0
        self._skipped = Skipped()
        self._names: dict[int, str] = {}  # of the samples that wait to be decoded, by row
        self._source: Iterator[tuple[Members, str]] = iter(())

    def state_dict(self) -> dict[str, Any]:
        """The tars, and how many samples were consumed."""
        return {"version": 1, "webdataset": self.location, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the count of `state`, in a new order; DataError for a state of other tars."""
        if state.get("webdataset") != self.location:
            tars = state.get("webdataset")
            made = f"the tars {redacted(tars)}" if tars else f"{state.get('name')}, which has a manifest"
            raise other_data(made, redacted(self.location))
        self.close()
        self.samples = int(state["samples"])

    def counts(self) -> dict[str, int]:
        """This rank's counters, to be summed over the ranks: of TrainStream's, `bytes` alone."""
        return {"bytes": self._bytes}

    def check_counts(self, summed: dict[str, int]) -> None:
        """Nothing to check: the first bad sample ends the run."""

    def _stop(self) -> None:
        super()._stop()
        self._names.clear()
        self._source = iter(())

    def fetch(self, shard: int, row: int) -> Fetched:
        """The next sample's members, as those of `row`; called by one thread."""
        members, self._names[row] = next(self._source)
        self._bytes += sum(len(body) for body in members.values() if isinstance(body, bytes))
        return members

    def decode(self, fetched: Fetched, position: int, shard: int, row: int) -> Example:
        """What the transform makes of the sample; DataError when it cannot be decoded."""
        assert not isinstance(fetched, DataError)
        name = self._names.pop(row)
        try:
            return self.transform(fetched, DrawKey(self.seed, position))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    def stalled(self) -> DataError:
        """The error for a batch that does not come in time."""
        waited = f"no batch for {self.options.read.stall_s:.0f} s"
        return DataError(f"{redacted(self._url)}: {waited} while reading it")

    def _batches(self) -> Generator[Batch, None, None]:
        if self.dp_rank == 0:
            logger.warning("%s", statement(self.location, self.shuffle))
        self._source = self._samples(self.samples)
        batches = prefetched(self._plans(), self, self.transform.collators, self.options)
        try:
            for count, (batch, waited_s) in enumerate(batches, 1):
                self.wait_s += waited_s
                if count % self.grad_accum_steps == 0:
                    self.samples += self.global_batch_size
                yield batch
        finally:
            batches.close()

    def _plans(self) -> Iterator[BatchPlan]:
        per_rank, number = self.global_batch_size // self.dp_size, 0
        start = self.samples + self.dp_rank * per_rank
        while True:
            rows = np.arange(number, number + self.micro_batch_size, dtype=np.int64)
            positions = start + rows // per_rank * self.global_batch_size + rows % per_rank
            yield BatchPlan(positions=positions, shards=np.zeros_like(rows), rows=rows)
            number += self.micro_batch_size

    def _samples(self, start: int) -> Iterator[tuple[Members, str]]:
        """The members of samples and their names, endlessly, as webdataset reads and shuffles them."""
        from webdataset.filters import shuffle
        from webdataset.tariterators import tarfile_samples

        read = tarfile_samples(self.tars(start), select_files=self._selects)
        mixed = shuffle(self.shuffle, rng=random.Random(fold(self.seed, start, self.dp_rank)))
        try:
            for sample in mixed(self._counted(read)):
                yield self._checked(sample)
        except DataError:
            raise
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{redacted(self._url)}: cannot read it: {_reason(error, self._url)}") from error

    def _selects(self, name: str) -> bool:
        """Whether to read a member; the first one skipped is printed, and all are counted."""
        if not is_hidden(name):
            return True
        if not self._skipped.kinds:
            logger.warning("%s: %s are skipped, such as %s", redacted(self._url), HIDDEN, name)
        self._skipped.add(HIDDEN, name)
        return False

    def _counted(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            self._read += 1
            yield sample

    def tars(self, start: int) -> Iterator[dict[str, str]]:
        """This rank's tars, pass after pass, as webdataset takes them: {"url": ...}.

        It is every dp_size-th tar of a permutation keyed by `start`, or all where the ranks are more.
        """
        step = self.dp_size if len(self.urls) >= self.dp_size else 1
        turn, before = 0, -1
        while before < self._read:
            before = self._read
            order = permutation(len(self.urls), Purpose.SHARDS, self.seed, start, turn)
            for i in order[self.dp_rank % step :: step].tolist():
                self._url = self.urls[i]
                yield {"url": self._url}
            for note in self._skipped.notes(redacted(self.location)) if turn == 0 else ():
                logger.warning("%s", note)
            turn += 1
        raise DataError(f"{redacted(self.location)}: no samples in these tars")

    def _checked(self, sample: dict[str, Any]) -> tuple[Members, str]:
        name = f"{redacted(sample['__url__'])}: sample {sample['__key__']}"
        bodies: dict[str, bytes] = {}
        present = [key for key in sample if not key.startswith("__")]
        for extension in [end for end in IMAGE_SUFFIXES if end in present] + present:  # .jpg before .png
            field = self._extensions.field_of(extension)
            if field == "label" and extension in LABELS and extension != "cls":
                continue  # `shards index` reads it; this stream reads numbers alone
            if (
                bodies.get(field, sample[extension]) is not sample[extension]
                and self.fields != IMAGE_AND_LABEL
            ):
                raise DataError(f"{name}: has two members for {field}, .{extension} is the second")
            if field:
                bodies.setdefault(field, sample[extension])
        if missing := [field for field in self.fields if field.name not in bodies]:
            raise DataError(f"{name}: {self._lacks(sample, missing[0])}")
        return {field.name: self._value(field, bodies[field.name], name) for field in self.fields}, name

    def _value(self, field: Field, body: bytes, name: str) -> bytes | int:
        if not field.is_scalar:
            return body
        try:
            label = parse_label(label_text(body)) if field.name == "label" else codec_of(field).decode(body)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from None
        if field.name == "label" and (isinstance(label, str) or label >= self.num_classes):
            fix = f"it must be a number below {self.num_classes}; `shards index` takes names as well"
            raise DataError(f"{name}: has an image and the label {label!r}; {fix}")
        return int(label)

    def _lacks(self, sample: dict[str, Any], field: Field) -> str:
        """What a sample lacks, and what it has instead."""
        what = f"member {field.name} ({self._extensions.shown(field)})"
        if field in IMAGE_AND_LABEL:
            what = ".cls" if field.is_scalar else "member with the suffix of an image"
        members = ", ".join(f".{key}" for key in sample if not key.startswith("__"))
        return (
            f"has no {what}, but {members}; the members of a sample must be side by side in one tar, "
            "under names that differ behind the first dot only; `shards index` takes them in any order"
        )


def statement(location: str, shuffle: int = SHUFFLE_BUFFER) -> str:
    """What is not guaranteed of the tars at `location`."""
    values = {
        "location": redacted(location),
        "version": version("webdataset"),
        "count": len(expand(location)),
    }
    return STATEMENT.format(shuffle=shuffle, **values)


def _reason(error: Exception, url: str) -> str:
    """The error of webdataset, without the command, which it repeats in full."""
    if isinstance(error, tarfile.TarError) and (kind := _other_kind(url)):
        return f"it is {kind}, not a tar"
    text = str(error.args[0]) if error.args else ""
    if status := re.search(r": exit (-?\d+) \(read\)", text):
        return f"the command that reads it exited with status {status[1]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return f"{type(error).__name__}: {text.partition(' @ ')[0]}"


def _other_kind(url: str) -> str:
    """What a local file is when its first bytes are those of no tar, compressed or not; otherwise ""."""
    if not Path(url).is_file():
        return ""
    with open(url, "rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
    return "" if kind in ("a tar", *COMPRESSED) else kind
