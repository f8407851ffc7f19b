"""The writer: against webdataset's ShardWriter, from a folder, and the memory that a plan takes.

    python benchmarks/data_pack.py --out /tmp/bench                        # a minute
    python benchmarks/data_pack.py --out /tmp/bench --plan 14200000        # ImageNet-22K's number of samples

Writers are compared by CPU seconds (user and system) of one process, in turn, the best of several rounds, on
the same JPEGs in memory and to the same disk, without SHA-256 and without checks, which ShardWriter has not.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import webdataset

from data_shards.format.fields import IMAGE_AND_LABEL, Sample
from data_shards.format.tar import write_samples
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.write import pack
from parallel.durable import atomic_file, atomic_write

MEAN_BYTES, IMAGES, SAMPLES = 97_500, 128, 4000  # as ImageNet's; enough pictures that none stays in a cache


def make_images(count: int) -> list[bytes]:
    """Random bytes behind the header of a real JPEG, of ImageNet's sizes: writers do not look inside."""
    rng = np.random.default_rng(0)
    head = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    sizes = np.clip(rng.gamma(3.0, MEAN_BYTES / 3, count), 3000, 600_000).astype(int)
    return [head + rng.bytes(int(size)) for size in sizes]


def write_ours(out: Path, images: list[bytes], samples: int, per_shard: int) -> None:
    """What a pack worker does between reading and hashing: tars and indices, fsynced and renamed."""
    for start in range(0, samples, per_shard):
        rows = range(start, min(start + per_shard, samples))
        path = out / f"{start:08d}.tar"
        with atomic_file(path) as handle:
            members = ({"image": images[i % len(images)], "label": i % 1000} for i in rows)
            index = write_samples(handle, (Sample(f"{i:08d}", m) for i, m in zip(rows, members, strict=True)))
        atomic_write(path.with_suffix(".idx"), index.tobytes())


def write_webdataset(out: Path, images: list[bytes], samples: int, per_shard: int) -> None:
    """The same samples through webdataset.ShardWriter."""
    pattern = str(out / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, maxsize=1e12, verbose=0) as writer:
        for i in range(samples):
            writer.write({"__key__": f"{i:08d}", "jpg": images[i % len(images)], "cls": i % 1000})


def cpu_s(function: Callable[[], None], who: int = resource.RUSAGE_SELF) -> float:
    """CPU seconds of a call, user and system."""

    def now() -> float:
        used = resource.getrusage(who)
        return used.ru_utime + used.ru_stime

    began = now()
    function()
    return now() - began


def writers(out: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Samples a CPU second of both writers, interleaved, and their ratio."""
    images, best = make_images(IMAGES), {"ours": 0.0, "webdataset": 0.0}
    for _ in range(rounds):
        for name, write in (("webdataset", write_webdataset), ("ours", write_ours)):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            spent = cpu_s(lambda write=write: write(out, images, SAMPLES, 1000))  # type: ignore[misc]
            best[name] = max(best[name], SAMPLES / spent)
    yield {"what": "writer", **{f"{k}_samples_cpu_s": v for k, v in best.items()}}
    yield {"what": "ratio to webdataset.ShardWriter", "ratio": best["ours"] / best["webdataset"]}


def whole_pack(out: Path, samples: int = 2000) -> Iterator[dict[str, Any]]:
    """Samples a CPU second of `pack` from a folder of real JPEGs, by how much it looks at them."""
    shutil.rmtree(out, ignore_errors=True)
    rng = np.random.default_rng(0)
    (out / "in" / "train" / "a").mkdir(parents=True)
    small = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
    for i in range(samples):
        pixels = np.ascontiguousarray(np.roll(small, i, 0).repeat(13, 0).repeat(12, 1))
        (out / "in" / "train" / "a" / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=90))
    source = image_folder(out / "in")
    for name, options in {
        "check none": {"check": "none"},
        "check header": {"check": "header"},
        "check decode": {"check": "decode"},
        "short side 256, quality 90": {"short_side": 256, "quality": 90},
    }.items():
        spent = cpu_s(lambda o=options, n=name: pack(source, "train", out / n, **o))  # type: ignore[misc]
        yield {"what": f"pack of a folder, {name}, with SHA-256", "samples_cpu_s": samples / spent}


def plan(count: int, out: Path, by_bytes: bool) -> dict[str, Any]:
    """Seconds and peak memory, in a process of its own, to list, order and cut `count` samples."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "ILSVRC2011fall_whole_map_train.txt"
    if not path.exists():
        with open(path, "w") as file:
            for i in range(count):
                wnid = f"n{i % 21841:08d}"
                file.write(f'{", " if i else "["}["{wnid}/{wnid}_{i}.JPEG", {i % 21841}]')
            file.write("]")
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--out", str(out), "--plan-here", "bytes" if by_bytes else "samples"],
        capture_output=True,
        text=True,
        check=True,
    )
    return (
        json.loads(done.stdout)
        | {"what": f"plan, {count} samples, by {'bytes' if by_bytes else 'samples'}"}
        | {"process_s": time.perf_counter() - began}
    )


def peak_gb() -> float:
    """The most memory this program has had; not getrusage's, which begins with that of whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def plan_here(out: Path, by_bytes: bool) -> dict[str, Any]:
    """The plan of a pack, up to the first job, and this process's peak; sizes are made up."""
    from data_shards.pack.plan import PackOptions, cut, make_plan, order
    from data_shards.pack.sources.folders import FileSamples
    from data_shards.pack.sources.imagenet import imagenet22k

    before = peak_gb()
    began = time.perf_counter()
    source = imagenet22k(out)
    listed = time.perf_counter()
    samples = source.splits["train"]
    options = PackOptions(bytes_per_shard=100_000_000) if by_bytes else PackOptions()
    make_plan(source, "train", options)
    ranks = order(len(samples), options)
    FileSamples.sizes = lambda self: np.full(len(self), MEAN_BYTES, dtype=np.int64)  # type: ignore[method-assign]
    starts = cut(samples, ranks, options, IMAGE_AND_LABEL)
    samples.select(ranks[starts[0] : starts[1]])
    return {
        "shards": len(starts) - 1,
        "list_s": listed - began,
        "order_and_cut_s": time.perf_counter() - listed,
        "peak_gb": peak_gb(),
        "imports_gb": before,
    }


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every measurement that is asked for."""
    if args.plan:
        yield from (plan(args.plan, args.out / f"plan-{args.plan}", by_bytes) for by_bytes in (False, True))
        return
    yield from writers(args.out / "writers", args.rounds)
    yield from whole_pack(args.out / "pack")


def main() -> None:
    """Run what is asked for and print a line a measurement."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="scratch directory")
    parser.add_argument("--rounds", type=int, default=5, help="of each writer (default %(default)s)")
    parser.add_argument("--plan", type=int, help="only measure planning so many samples")
    parser.add_argument("--plan-here", choices=["bytes", "samples"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    args = parser.parse_args()
    if args.plan_here:
        print(json.dumps(plan_here(args.out, args.plan_here == "bytes")))
        return
    everything = []
    for row in rows(args):
        print(
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
            flush=True,
        )
        everything.append(row)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
