"""`swin-moe bench data`: how many images a second this machine and storage can feed, and what limits them."""

import argparse
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.image.region import describe
from data_shards.stream.benchmark import Bench, StorageRate, StreamRate


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `bench data`: the exit status; DataError for bad options or data."""
    cores = len(os.sched_getaffinity(0))
    threads = cores if args.threads is None else args.threads
    if threads < 1:
        raise DataError(f"--threads ({threads}) must be at least 1")
    if args.target is not None and not 0 < args.target < math.inf:
        raise DataError(f"--target ({args.target}) must be images a second, above 0, for example 2000")
    bench = Bench(args.directory, image_size=args.image_size, images=args.images, batch_size=args.batch_size)
    storage, stages, stream = bench.storage(threads), bench.stages(), bench.stream(threads)
    measured = report(storage, stages, stream, cores, args.target)
    args.answer = measured
    print(render(args.directory, measured))
    return 0


def report(
    storage: StorageRate, stages: dict[str, float], stream: StreamRate, cores: int, target: float | None
) -> dict[str, Any]:
    """All that was measured, and what follows from it, as JSON-able values; times in milliseconds."""
    record: dict[str, Any] = {
        "cores": cores,
        "decoder": describe(),
        "storage": asdict(storage),
        "stages_ms": {stage: 1e3 * seconds for stage, seconds in stages.items()},
        "img_s_core": 1 / sum(stages.values()),
        "stream": {"img_s": stream.img_s, "threads": stream.threads, "cpu_ms": 1e3 * stream.cpu_s},
    }
    if target is not None:
        image_mb = storage.mb_s / storage.img_s
        needs = {
            "img_s": target,
            "cores": math.ceil(target * stream.cpu_s),
            "storage_mb_s": target * image_mb,
        }
        record["target"] = needs
    return record


def render(directory: str | Path, found: dict[str, Any]) -> str:
    """The report as text for a terminal."""
    storage, stream, total = found["storage"], found["stream"], sum(found["stages_ms"].values())
    memory = "memory dropped first" if storage["cold"] else "as it is cached"
    lines = [
        f"{directory}, {found['cores']} cores",
        f"  storage   {storage['img_s']:.0f} images/s, {storage['mb_s']:.0f} MB/s, "
        f"{storage['threads']} threads, {memory}",
        *(f"  {stage:8}  {ms:.3f} ms  {ms / total:4.0%}" for stage, ms in found["stages_ms"].items()),
        f"  decoder   {found['decoder']}",
        f"  together  {total:.3f} ms of CPU an image: {found['img_s_core']:.0f} images/s and core",
        f"  stream    {stream['img_s']:.0f} images/s with {stream['threads']} threads, "
        f"{stream['cpu_ms']:.3f} ms of CPU an image",
    ]
    if target := found.get("target"):
        lines.append(
            f"  {target['img_s']:.0f} images/s need {target['cores']} cores like these and "
            f"{target['storage_mb_s']:.0f} MB/s of storage{_limit(found)}"
        )
    return "\n".join(lines)


def _limit(found: dict[str, Any]) -> str:
    """What this machine has less of than the target needs."""
    short = []
    if found["target"]["cores"] > found["cores"]:
        short.append(f"it has {found['cores']} cores")
    if found["target"]["storage_mb_s"] > found["storage"]["mb_s"]:
        short.append(f"its storage gave {found['storage']['mb_s']:.0f} MB/s")
    return f"; too little here: {' and '.join(short)}" if short else "; enough here"
