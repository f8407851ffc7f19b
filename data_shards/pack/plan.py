"""The plan of a pack: options, order and cuts, fixed before a shard is written.

    pack.json   the plan of an unfinished pack; replaced by manifest.json at the end

N = samples that the source lists; the plan includes damaged ones, since none has been read yet.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.codecs.registry import packed_fields
from data_shards.errors import DataError
from data_shards.format.fields import Field, files_of
from data_shards.format.index import (
    MANIFEST_NAME,
    Manifest,
    Writer,
    canonical_json,
    check_shards,
    read_json,
    schema_of,
)
from data_shards.format.rng import Purpose, permutation
from data_shards.format.samples import Samples, Source
from data_shards.format.tar import BLOCK, END_OF_ARCHIVE
from data_shards.pack.members import check_resizable, with_sizes
from data_shards.pack.reencode import Recipe
from parallel.durable import atomic_write

WRITER_VERSION = 1
PLAN_NAME = "pack.json"
SAMPLES_PER_SHARD = 1000
MIN_BYTES_PER_SHARD = 2**12
NOT_COMPARED = ("starts", "max_bad", "writer", "gone")


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """The options of a pack; DataError for a value out of range.

    samples_per_shard: 1000 unless it or `bytes_per_shard` is given.
    bytes_per_shard: no tar longer than this, estimated by the sizes of the sources (re-encoded ones come
        out shorter); a sample that is longer gets a shard of its own.
    seed: of the shuffle; `shuffle` False keeps the source's order.
    quality, short_side, baseline, check: see data_shards/pack/reencode.py.
    image_sizes: record height and width of the image as two more members, for tasks that group by size.
    max_bad: the fraction of damaged sources beyond which packing stops; 10 are always allowed.
    """

    samples_per_shard: int | None = None
    bytes_per_shard: int | None = None
    seed: int = 0
    shuffle: bool = True
    quality: int = 95
    short_side: int = 0
    baseline: bool = False
    check: str = "decode"
    image_sizes: bool = False
    max_bad: float = 0.001

    def __post_init__(self) -> None:
        if self.samples_per_shard is not None and self.bytes_per_shard is not None:
            raise DataError("samples_per_shard and bytes_per_shard exclude each other; give one")
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise DataError(f"samples_per_shard ({self.samples_per_shard}) must be at least 1")
        if self.bytes_per_shard is not None and self.bytes_per_shard < MIN_BYTES_PER_SHARD:
            raise DataError(
                f"bytes_per_shard ({self.bytes_per_shard}) must be at least {MIN_BYTES_PER_SHARD}"
            )
        if not 0 <= self.max_bad <= 1:
            raise DataError(f"max_bad ({self.max_bad}) must be a fraction, in 0 ... 1")
        self.recipe()

    def recipe(self) -> Recipe:
        """The options that concern one sample."""
        return Recipe(
            quality=self.quality,
            short_side=self.short_side,
            baseline=self.baseline,
            check=self.check,
            image_sizes=self.image_sizes,
        )

    def fields(self, source: Source) -> tuple[Field, ...]:
        """The members that are packed; DataError where the options do not fit those of the source."""
        fields = packed_fields(source.fields)
        if self.short_side:
            check_resizable(fields)
        return with_sizes(fields) if self.image_sizes else fields

    def writer(self, source: Source, split: str) -> Writer:
        """The options and the source, for the manifest."""
        by_samples = 0 if self.bytes_per_shard else self.samples_per_shard or SAMPLES_PER_SHARD
        return Writer(
            version=WRITER_VERSION,
            seed=self.seed,
            quality=self.quality,
            samples_per_shard=by_samples,
            source=source.description,
            source_digest=source.splits[split].digest,
            bytes_per_shard=self.bytes_per_shard or 0,
            short_side=self.short_side,
            baseline=self.baseline,
            check=self.check,
            shuffle=self.shuffle,
            image_sizes=self.image_sizes,
        )

    @classmethod
    def of(cls, writer: Writer) -> "PackOptions":
        """The options that a manifest was written with; `max_bad` is not among them."""
        return cls(
            samples_per_shard=writer.samples_per_shard or None,
            bytes_per_shard=writer.bytes_per_shard or None,
            seed=writer.seed,
            shuffle=writer.shuffle,
            quality=writer.quality,
            short_side=writer.short_side,
            baseline=writer.baseline,
            check=writer.check,
            image_sizes=writer.image_sizes,
        )


def order(count: int, options: PackOptions) -> np.ndarray:
    """The index in the list of the sample at every rank: (N,) uint32."""
    if not options.shuffle:
        return np.arange(count, dtype=np.uint32)
    return permutation(count, Purpose.PACK, options.seed).astype(np.uint32)


def cut(samples: Samples, ranks: np.ndarray, options: PackOptions, fields: tuple[Field, ...]) -> list[int]:
    """The rank at which each shard starts, and N: a function of (list, sizes in it, options) alone.

    By bytes, a shard takes samples in order while its tar, header blocks and all, stays within the limit.
    """
    if options.bytes_per_shard is None:
        return [*range(0, len(ranks), options.samples_per_shard or SAMPLES_PER_SHARD), len(ranks)]
    sizes = samples.sizes()[ranks]
    files = len(
        files_of(fields)
    )  # a header each; padding of each but one, as `sizes` are sums; numbers 2 blocks
    blocks = 2 * (len(fields) - files) + 2 * files - 1
    ends = np.cumsum(blocks * BLOCK + (sizes + BLOCK - 1) // BLOCK * BLOCK)
    starts, limit = [0], options.bytes_per_shard - len(END_OF_ARCHIVE)
    while starts[-1] < len(ranks):
        before = int(ends[starts[-1] - 1]) if starts[-1] else 0
        starts.append(max(int(np.searchsorted(ends, before + limit, side="right")), starts[-1] + 1))
    return starts


def check_split(source: Source, split: str) -> None:
    """DataError when the source has no such split, or no sample in it."""
    if split not in source.splits:
        raise DataError(f"split: {source.name} has {', '.join(source.splits)} (got {split!r})")
    if not len(source.splits[split]):
        raise DataError(f"split: {split} of {source.name} has no samples; leave it out of --splits")


def make_plan(source: Source, split: str, options: PackOptions) -> dict[str, Any]:
    """The manifest without its shards, as it is read back from JSON."""
    check_split(source, split)
    writer, fields = options.writer(source, split), options.fields(source)
    empty = Manifest(
        schema=schema_of(fields),
        name=source.name,
        split=split,
        samples=0,
        classes=source.classes,
        shards=(),
        writer=writer,
        fields=fields,
        category_ids=source.category_ids,
    )
    return comparable(empty.to_dict()) | {
        "listed": len(source.splits[split]),
        "max_bad": options.max_bad,
    }


def comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without what depends on its shards; `listed` includes the samples left out."""
    listed = manifest["samples"] + manifest.get("bad_sources", 0)
    return {k: v for k, v in manifest.items() if k not in ("shards", "samples", "bad_sources")} | {
        "listed": listed
    }


def claim(
    out: Path, plan: dict[str, Any], starts: Callable[[], list[int]]
) -> tuple[list[int], Manifest | None]:
    """Claim `out` for this plan: the starts of its shards, and the manifest if nothing is left to do.

    DataError when another plan has it.
    """
    if (out / MANIFEST_NAME).exists():
        manifest = Manifest.load(out)
        _refuse_other(out, comparable(manifest.to_dict()), plan)
        try:
            check_shards(manifest, out)
        except DataError:
            pass  # the same plan with something missing: packing again writes exactly that
        else:
            return [], manifest
    before = read_json(out / PLAN_NAME) if (out / PLAN_NAME).exists() else None
    if before is not None:
        _refuse_other(out, before, plan)
    elif not (out / MANIFEST_NAME).exists() and (
        strangers := sorted(path.name for path in out.glob("*.tar"))
    ):
        raise DataError(f"{out}: holds {strangers[0]} but no {PLAN_NAME}; pass another --out, or delete it")
    plan = plan | {"starts": before["starts"] if before else starts()}
    if before != plan:
        atomic_write(out / PLAN_NAME, canonical_json(plan).encode())
    return plan["starts"], None


def _refuse_other(out: Path, before: dict[str, Any], plan: dict[str, Any]) -> None:
    there, wanted = (fields | asdict(Writer(**fields["writer"])) for fields in (before, plan))
    keys = [key for key in wanted | there if key not in NOT_COMPARED and there.get(key) != wanted.get(key)]
    if keys and set(keys) <= {"listed", "source_digest"}:
        counts = f"{there['listed']} samples then, {wanted['listed']} now"
        fix = f"delete {out} to pack the list of today, or pass another --out"
        raise DataError(
            f"{out}: the list of the source has changed since packing began ({counts}), by more than files "
            f"that were refused and are gone; {fix}"
        )
    if keys:
        text = "; ".join(
            f"{k}: {str(there.get(k))[:50]!r} there, {str(wanted.get(k))[:50]!r} requested" for k in keys
        )
        raise DataError(f"{out}: another pack is there ({text}); pass another --out, or delete {out}")
