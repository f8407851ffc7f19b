"""Why the tars of a directory, or their members, cannot be indexed: the reasons for a person to read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_shards.format.image_names import IMAGE_SUFFIXES, Skipped
from data_shards.format.samples import BadSource
from data_shards.pack.tar_scan import LABELS, NO_IMAGE, NO_LABEL, Scan

PACKED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")


def no_tars(root: Path) -> str:
    """The message for a directory without a tar."""
    names = sorted(path.name for path in root.iterdir())
    if packed := [name for name in names if name.lower().endswith(PACKED_TARS)]:
        fix = "an index points into the tar itself: unpack them to .tar first"
        return f"{root}: holds no *.tar but {len(packed)} compressed ones, such as {packed[0]}; {fix}"
    if inside := sorted(root.glob("*/*.tar")):
        return f"{root}: holds no *.tar; name {inside[0].parent} as the directory"
    return f"{root}: holds no *.tar"


def left_out(scans: Sequence[Scan]) -> Iterator[BadSource]:
    """The keys that no index has; the reason says where the other half of a key lies, if it is there."""
    bad = [sample for scan in scans for sample in scan.bad]
    labels = {
        sample.key.rpartition("/")[2]: f"{sample.shard}: {sample.key}"
        for sample in bad
        if sample.reason == NO_IMAGE
    }
    for sample in bad:
        reason, other = sample.reason, labels.get(sample.key.rpartition("/")[2])
        if reason == NO_LABEL and other:
            reason = f"{NO_LABEL}, which is {other}; both must be in one tar and one directory"
        yield BadSource(sample.key, sample.shard, -1, reason)


def no_samples(root: Path, bad: Sequence[BadSource], skipped: Skipped) -> str:
    """The message for tars without a single sample: what they hold instead."""
    found = Skipped()
    for source in bad:
        found.add(source.reason.partition(", which is ")[0], f"{source.source}: {source.key}")
    kinds = [f"{count} of {kind}, such as {example}" for kind, (count, example) in found.kinds.items()]
    if (pieces := next((b for b in bad if ", which is " in b.reason), None)) is not None:
        kinds.insert(0, f"{pieces.source}: {pieces.key}: {pieces.reason}")
    text = "; ".join([*kinds[:3], *skipped.notes("of the members")]) or "they have no members"
    images, labels = (", .".join(names) for names in (IMAGE_SUFFIXES, LABELS))
    return f"{root}: no sample in its tars ({text}); one is KEY.{images} with KEY.{labels}"
