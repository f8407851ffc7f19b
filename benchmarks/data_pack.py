"""Pack and read rates of data_shards, side by side in one run.

    python benchmarks/data_pack.py --out /tmp/bench             # Fashion-MNIST, and synthetic 256x256 images

Prints packing seconds for 1 and 2 workers, then training images a second for 1 and 2 decoding threads.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_shards.sources import Source, fashion_mnist, synthetic
from data_shards.write import pack


def packing_s(source: Source, out: Path, workers: int) -> float:
    """Seconds to pack every split from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    for split in source.splits:
        pack(source, split, out / split, workers=workers)
    return time.perf_counter() - began


def reading_img_s(split: Path, image_size: int, threads: int, batches: int) -> float:
    """Images a second of crop, resize and flip in batches of 64, the first batch not counted."""
    from data_shards.augment import TrainTransform
    from data_shards.stream import TrainStream

    sizes = {"global_batch_size": 64, "micro_batch_size": 64, "dp_rank": 0, "dp_size": 1}
    transform = TrainTransform(image_size=image_size)
    with TrainStream(split, seed=0, transform=transform, threads=threads, **sizes) as stream:
        iterator = iter(stream)
        next(iterator)
        began = time.perf_counter()
        count = sum(len(batch.labels) for batch in islice(iterator, batches))
        return count / (time.perf_counter() - began)


def rows(source: Source, out: Path, image_size: int, batches: int) -> Iterator[dict[str, Any]]:
    """Every measurement of one data set; reading twice, because the first pass also fills the page cache."""
    for workers in (1, 2):
        yield {"source": source.name, "workers": workers, "packing_s": packing_s(source, out, workers)}
    for _ in range(2):
        for threads in (1, 2):
            rate = reading_img_s(out / "train", image_size, threads, batches)
            yield {"source": source.name, "threads": threads, "image_size": image_size, "img_s": rate}


def main() -> None:
    """Run both data sets through both measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="scratch directory")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    args = parser.parse_args()
    everything = []
    for source, image_size, batches in ((fashion_mnist(), 28, 200), (synthetic(2000, 100, 10, 256), 192, 20)):
        for row in rows(source, args.out, image_size, batches):
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            everything.append(row)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
