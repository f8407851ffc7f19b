"""Continue a pack after refused files were deleted from its source.

The list that packing began with decides where a sample lies in the shards, so the deletion of a damaged file
would move every other sample. Therefore the list is restored: each refused file that is no longer listed gets
its old index back, which follows from the key in its record. The digest proves that the list is the same.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.index import MANIFEST_NAME, Manifest, read_json
from data_shards.format.samples import BadSource, Samples
from data_shards.pack.plan import PLAN_NAME, PackOptions, comparable, order
from data_shards.pack.progress import read_bad, refused
from data_shards.pack.sources.file_samples import FileSamples
from data_shards.pack.sources.path_list import PathList


def restore_deleted(
    samples: Samples, bad: Iterable[BadSource], listed: int, digest: str, options: PackOptions
) -> tuple[Samples, tuple[str, ...]]:
    """The list of `listed` samples with that `digest`, and the keys of the refused files that it restores.

    It is `samples` itself, without keys, when that differs from the list by anything but deleted files of
    `bad`, or is no list of files.
    """
    if not isinstance(samples, FileSamples) or samples.digest == digest or listed <= len(samples):
        return samples, ()
    by_name = {source.source: source for source in bad}
    for i in range(len(samples)):
        by_name.pop(samples.names[i], None)
    if len(samples) + len(by_name) != listed:
        return samples, ()
    gone = sorted(by_name.values(), key=lambda source: source.key)
    restored = _with(samples, gone, order(listed, options)[[int(source.key) for source in gone]])
    return (restored, tuple(source.key for source in gone)) if restored.digest == digest else (samples, ())


def _with(samples: FileSamples, gone: list[BadSource], indices: np.ndarray) -> FileSamples:
    """The samples with the files `gone` at `indices` (len(gone),) of the new list."""
    rows = np.ones(len(samples) + len(gone), dtype=bool)
    rows[indices] = False
    labels = np.empty(len(rows), dtype=np.uint32)
    labels[rows], labels[indices] = samples.labels, [source.label for source in gone]
    at = dict(zip(indices.tolist(), gone, strict=True))
    remaining = iter(range(len(samples)))
    names = (at[row].source if row in at else samples.names[next(remaining)] for row in range(len(rows)))
    return replace(samples, names=PathList.of(names), labels=labels)


def resume_plan(
    out: Path, plan: dict[str, Any], samples: Samples, options: PackOptions
) -> tuple[dict[str, Any], Samples]:
    """The plan and the samples of the pack in `out` if this one continues it, otherwise those given."""
    before, bad = _begun(out)
    if before is None or before["writer"].get("source_digest") == plan["writer"]["source_digest"]:
        return plan, samples
    digest = before["writer"]["source_digest"]
    restored, gone = restore_deleted(samples, bad, before["listed"], digest, options)
    if not gone:
        return plan, samples
    writer = plan["writer"] | {"source_digest": digest}
    return plan | {"listed": before["listed"], "writer": writer, "gone": list(gone)}, restored


def _begun(out: Path) -> tuple[dict[str, Any] | None, list[BadSource]]:
    """The plan that was started or finished in `out`, and the sources that it has refused so far."""
    if (out / PLAN_NAME).exists():
        return read_json(out / PLAN_NAME), refused(out)
    if not (out / MANIFEST_NAME).exists():
        return None, []
    manifest = Manifest.load(out)
    return comparable(manifest.to_dict()), read_bad(out) if manifest.bad_sources else []
