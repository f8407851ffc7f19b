"""Go on with a pack whose source has lost files that were refused: `whole, gone = as_packed(...)`.

Where a sample lies in the shards follows from the list that packing began with, so deleting a damaged file
would move every other one. The list is therefore made whole again: each refused file that is no longer listed
gets its old place back, which the key in its record tells. The digest of the list proves that it is the same.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.index import MANIFEST_NAME, Manifest, read_json
from data_shards.format.names import Names
from data_shards.format.samples import BadSource, Samples
from data_shards.pack.plan import PLAN_NAME, PackOptions, comparable, order
from data_shards.pack.progress import read_bad, refused
from data_shards.pack.sources.file_samples import FileSamples


def as_packed(
    samples: Samples, bad: Iterable[BadSource], listed: int, digest: str, options: PackOptions
) -> tuple[Samples, tuple[str, ...]]:
    """The list of `listed` samples with that `digest`, and the keys of the refused files it has again.

    `samples` itself, and no keys, when it differs from that list by anything but files of `bad` that are
    gone, or is no list of files.
    """
    if not isinstance(samples, FileSamples) or samples.digest == digest or listed <= len(samples):
        return samples, ()
    by_name = {source.source: source for source in bad}
    for i in range(len(samples)):
        by_name.pop(samples.names[i], None)
    if len(samples) + len(by_name) != listed:
        return samples, ()
    gone = sorted(by_name.values(), key=lambda source: source.key)
    whole = _with(samples, gone, order(listed, options)[[int(source.key) for source in gone]])
    return (whole, tuple(source.key for source in gone)) if whole.digest == digest else (samples, ())


def _with(samples: FileSamples, gone: list[BadSource], places: np.ndarray) -> FileSamples:
    """The samples with the files `gone` at `places` (len(gone),) of the new list."""
    rows = np.ones(len(samples) + len(gone), dtype=bool)
    rows[places] = False
    labels = np.empty(len(rows), dtype=np.uint32)
    labels[rows], labels[places] = samples.labels, [source.label for source in gone]
    at = dict(zip(places.tolist(), gone, strict=True))
    there = iter(range(len(samples)))
    names = (at[row].source if row in at else samples.names[next(there)] for row in range(len(rows)))
    return replace(samples, names=Names.of(names), labels=labels)


def go_on(
    out: Path, plan: dict[str, Any], samples: Samples, options: PackOptions
) -> tuple[dict[str, Any], Samples]:
    """The plan and the samples of the pack in `out` where this one continues it, otherwise those given."""
    before, bad = _begun(out)
    if before is None or before["writer"].get("source_digest") == plan["writer"]["source_digest"]:
        return plan, samples
    digest = before["writer"]["source_digest"]
    whole, gone = as_packed(samples, bad, before["listed"], digest, options)
    if not gone:
        return plan, samples
    writer = plan["writer"] | {"source_digest": digest}
    return plan | {"listed": before["listed"], "writer": writer, "gone": list(gone)}, whole


def _begun(out: Path) -> tuple[dict[str, Any] | None, list[BadSource]]:
    """The plan that was begun or carried out in `out`, and the sources that it has refused so far."""
    if (out / PLAN_NAME).exists():
        return read_json(out / PLAN_NAME), refused(out)
    if not (out / MANIFEST_NAME).exists():
        return None, []
    manifest = Manifest.load(out)
    return comparable(manifest.to_dict()), read_bad(out) if manifest.bad_sources else []
