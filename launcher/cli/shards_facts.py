"""What `--json` of the commands of `swin-moe shards` says of a split."""

from pathlib import Path
from typing import Any

from data_shards.format.index import Manifest


def split_facts(out: Path, manifest: Manifest) -> dict[str, Any]:
    """What was written, for `--json`."""
    return {
        "directory": out,
        "name": manifest.name,
        "split": manifest.split,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bad_sources": manifest.bad_sources,
        "digest": manifest.digest,
    }
