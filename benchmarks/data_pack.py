"""Pack and read rates of data_shards, side by side in one run.

    python benchmarks/data_pack.py --out /tmp/bench             # Fashion-MNIST, and synthetic 256x256 images

Prints packing seconds for 1 and 2 workers, then training images a second for 1 and 2 decoding threads.
"""

import argparse
import shutil
import time
from itertools import islice
from pathlib import Path

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


def main() -> None:
    """Run both data sets through both measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="scratch directory")
    out = parser.parse_args().out
    for source, image_size, batches in ((fashion_mnist(), 28, 200), (synthetic(2000, 100, 10, 256), 192, 20)):
        for workers in (1, 2):
            print(f"{source.name}: packed by {workers} in {packing_s(source, out, workers):.2f} s")
        for _ in range(2):
            for threads in (1, 2):
                rate = reading_img_s(out / "train", image_size, threads, batches)
                print(f"{source.name}: {threads} threads read {rate:.0f} img_s at {image_size} px")


if __name__ == "__main__":
    main()
