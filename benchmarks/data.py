r"""Reading, decoding and the whole way of training images, against the others, side by side in one run.

    python benchmarks/data.py --out /tmp/bench/data             # some minutes; --quick: one
    python benchmarks/data.py --out /tmp/bench/data --json FILE

Every contender reads the same JPEGs (data_images.py) from the same tars, warm in the page cache, by turns, in
several rounds; the figure is CPU time, user and system, children counted, of the best round, so images a
second are a core's. litdata takes part when it can be imported, as from an environment of its own whose
site-packages holds a file ours.pth with the path of ours:

    python -m venv /tmp/litdata
    /tmp/litdata/bin/pip install --no-deps litdata lightning-utilities boto3 botocore s3transfer urllib3 \
        python-dateutil six jmespath requests certifi charset-normalizer obstore
    PYTHONPATH=$PWD /tmp/litdata/bin/python benchmarks/data.py --out /tmp/bench/data

Writers are compared by data_pack.py. S = 192 pixels, batches of 64.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
import torch
from data_contenders import Contender, Data, contenders
from data_images import JpegSamples, jpegs

from data_shards.format.samples import Source
from data_shards.pack.write import pack


def prepare(out: Path, distinct: int, samples: int) -> Data:
    """Make whatever is not there yet."""
    bodies = jpegs(distinct)
    split = out / f"{distinct}-{samples}" / "train"
    source = JpegSamples(bodies, np.arange(samples))
    pack(Source("bench", "noise", tuple(map(str, range(1000))), {"train": source}), "train", split)
    data = Data(
        split,
        sorted(map(str, split.glob("*.tar"))),
        write_chunks(split.parent / "litdata", source),
        bodies,
        samples,
    )
    sizes = [len(body) for body in bodies]
    kpx = [np.prod(simplejpeg.decode_jpeg_header(body)[:2]) / 1e3 for body in bodies]
    averages = f"{np.mean(sizes) / 1e3:.1f} KB, {np.mean(kpx):.0f} kpx on average"
    print(f"{samples} samples, {distinct} distinct: {averages}")
    return data


def write_chunks(directory: Path, source: JpegSamples) -> Path | None:
    """The same samples as litdata keeps them; None without litdata."""
    try:
        from litdata.streaming import Cache
    except ImportError:
        return None
    if not (directory / "index.json").exists():
        cache = Cache(str(directory), chunk_bytes=100_000_000)
        for i in range(len(source)):
            cache[i] = {"jpg": source[i][0], "cls": source[i][1]}
        cache.done()
        cache.merge()
    return directory


BARS = (  # group, against, ours at least so many times as fast
    ("raw read", "webdataset", 6.0),
    ("raw read", "litdata", 2.0),
    ("decode + crop", "PIL", 1.8),
    ("decode + crop", "full decode", 0.80),
    ("end to end", "webdataset + PIL", 2.0),
)


def cpu_s() -> float:
    """User and system time of this process and of its children that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(group: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU an image of every contender in every round, by turns; a round before warms up."""
    times: dict[str, list[float]] = {name: [] for name in group}
    for _ in range(rounds + 1):
        for name, work in group.items():
            began = cpu_s()
            images = work()
            times[name].append(1e6 * (cpu_s() - began) / images)
    return {name: figures[1:] for name, figures in times.items()}


def rows(data: Data, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a contender: CPU time an image, images a second and core, and how often ours is as fast.

    `ours_is` compares the best rounds, `median` is of the rounds' ratios.
    """
    for title, group in contenders(data).items():
        times = measure(group, rounds)
        ours = times["ours"]
        for name, theirs in times.items():
            yield {
                "group": title,
                "contender": name,
                "us": round(min(theirs), 1),
                "img_s_core": round(1e6 / min(theirs)),
                "ours_is": round(min(theirs) / min(ours), 3),
                "median": round(median(b / a for a, b in zip(ours, theirs, strict=True)), 3),
            }


def verdicts(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row a bar whose contender took part."""
    for group, against, bar in BARS:
        for row in found:
            if (row["group"], row["contender"]) == (group, against):
                holds = row["ours_is"] >= bar
                yield {
                    "bar": f"{group} against {against}",
                    "at_least": bar,
                    "is": row["ours_is"],
                    "holds": holds,
                }


def show(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row and pass it on."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def main() -> None:
    """Make the data, run every group, hold the bars against it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="scratch directory, 300 MB; kept for the next run"
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = prepare(args.out, *(48, 384) if args.quick else (256, 1536))
    found = [show(row) for row in rows(data, rounds=2 if args.quick else 5)]
    if data.chunks is None:
        print("litdata is not installed in this environment; the head of this script says how to add it")
    found += [show(row) for row in verdicts(found)]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
