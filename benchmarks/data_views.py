"""Several views of an image: decoded once, against each view decoded alone, side by side in one run.

    python benchmarks/data_views.py                    # a minute; --quick: some seconds
    python benchmarks/data_views.py --json FILE

CPU time, by turns, the best of several rounds, on the JPEGs of data_images.py. The last row is the loader: a
training stream of batches of two views, against one of a single view, in images a second and core. It must
give at least 0.6 as many.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from data_images import JpegSamples, jpegs

from data_shards.format.rng import DrawKey
from data_shards.format.samples import Source
from data_shards.image.decode import decode_image, decode_views
from data_shards.image.geometry import TrainTransform
from data_shards.order.sampling import TrainSampling
from data_shards.pack.write import pack
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import Images, Transform
from data_shards.stream.views import ImageViews

Views = Sequence[TrainTransform]
PAIR: Views = [TrainTransform(image_size=224)] * 2
MULTI_CROP: Views = [  # "Emerging Properties in Self-Supervised Vision Transformers", Caron et al., 2021
    *[TrainTransform(image_size=224, scale=(0.4, 1.0))] * 2,
    *[TrainTransform(image_size=96, scale=(0.05, 0.4))] * 8,
]
BATCH = 32
LEAST_SHARE = 0.6  # of the images a second of one view
SETS = {"2 of 224": PAIR, "2 of 224 and 8 of 96": MULTI_CROP}
Decode = Callable[[bytes, Views, list[DrawKey]], list[np.ndarray]]


def each_alone(body: bytes, views: Views, keys: list[DrawKey]) -> list[np.ndarray]:
    """Every view by a decoding of its own."""
    return [decode_image(body, view, key) for view, key in zip(views, keys, strict=True)]


def microseconds(decode: Decode, bodies: list[bytes], views: Views) -> float:
    """CPU time an image."""
    began = time.thread_time()
    for position, body in enumerate(bodies):
        decode(body, views, [DrawKey(0, position, view) for view in range(len(views))])
    return 1e6 * (time.thread_time() - began) / len(bodies)


def equal(bodies: list[bytes], views: Views) -> float:
    """The share of views that are the same bit for bit."""
    same = []
    for position, body in enumerate(bodies):
        keys = [DrawKey(0, position, view) for view in range(len(views))]
        pairs = zip(decode_views(body, views, keys), each_alone(body, views, keys), strict=True)
        same += [np.array_equal(once, alone) for once, alone in pairs]
    return float(np.mean(same))


def measure(bodies: list[bytes], rounds: int) -> list[dict[str, str | float | bool]]:
    """One row a set of views."""
    rows: list[dict[str, str | float | bool]] = []
    for name, views in SETS.items():
        turns = [
            (microseconds(decode_views, bodies, views), microseconds(each_alone, bodies, views))
            for _ in range(rounds + 1)
        ]
        once, alone = (min(figures) for figures in zip(*turns[1:], strict=True))  # the first warms up
        rows.append(
            {
                "views": name,
                "once_us": round(once),
                "alone_us": round(alone),
                "ratio": round(alone / once, 2),
                "equal": round(equal(bodies, views), 3),
            }
        )
    return rows


def loader(bodies: list[bytes], rounds: int) -> dict[str, str | float | bool]:
    """Images a second and core of a training stream with one view and with two."""
    transforms: dict[str, Transform] = {"one": Images(PAIR[0]), "two": ImageViews(tuple(PAIR))}
    with tempfile.TemporaryDirectory() as directory:
        split, samples = Path(directory) / "train", JpegSamples(bodies, np.arange(len(bodies)))
        pack(Source("bench", "noise", tuple(map(str, range(1000))), {"train": samples}), "train", split)
        turns = [
            {name: stream_us(split, transform, len(bodies)) for name, transform in transforms.items()}
            for _ in range(rounds + 1)
        ]
    one, two = (min(turn[name] for turn in turns[1:]) for name in transforms)
    share = one / two
    return {
        "views": "loader, 2 of 224",
        "one_img_s": round(1e6 / one),
        "two_img_s": round(1e6 / two),
        "share": round(share, 2),
        "holds": share >= LEAST_SHARE,
    }


def stream_us(split: Path, transform: Transform, images: int) -> float:
    """CPU time of a sample in microseconds, over so many samples: all threads, which keep as far ahead."""
    sampling = TrainSampling(seed=0, global_batch_size=BATCH, micro_batch_size=BATCH)
    with TrainStream(split, sampling, transform) as stream:
        batches = iter(stream)
        next(batches)  # warms up
        began, count = time.process_time(), max(1, images // BATCH)
        for _ in islice(batches, count):
            pass
        return 1e6 * (time.process_time() - began) / (count * BATCH)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bodies, rounds = jpegs(32 if args.quick else 128), 2 if args.quick else 5
    rows: list[dict[str, str | float | bool]] = [*measure(bodies, rounds), loader(bodies, rounds)]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
