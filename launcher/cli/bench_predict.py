"""`swin-moe bench predict`: the latency of models by batch size, and whether they or decoding limit it."""

import argparse
from typing import Any

import torch

from launcher.bench.images import SIDE, bench_images
from launcher.bench.in_turns import Measured, check_images, measure
from launcher.bench.latency import FEW
from launcher.bench.machine import Machine, this_machine
from launcher.bench.measurable import Measurable, open_measurable
from launcher.console.columns import aligned
from launcher.console.progress import progress_line
from launcher.deploy.artifact import is_artifact

HEAD = ("model", "program", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "ratio", "decode ms")
HEAD_DECODING = ("images/s", "threads")


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `bench predict`: the exit status."""
    images = bench_images(args.files, args.synthetic_size or SIDE)
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = this_machine()
    models = opened(args)
    check_images(models[0], images)
    rows = measure(models, images, args.batch, args.rounds, progress_line("bench predict", "calls"))
    programs = [model.program for model in models] * len(args.batch)
    answer: dict[str, Any] = {
        "machine": machine,
        "threads": torch.get_num_threads(),
        "images": images.text,
        "rounds": args.rounds,
        "rows": [{"program": name, **row.record()} for name, row in zip(programs, rows, strict=True)],
    }
    args.answer = answer
    print(render(rows, programs, machine, answer["threads"], images.text))
    return 0


def opened(args: argparse.Namespace) -> list[Measurable]:
    """The models in their order; options of a model are for those that are no artifacts, if there are any."""
    artifacts = [is_artifact(model) for model in args.models]
    options = {"config": args.config, "ema": args.ema, "precision": args.precision, "device": args.device}
    return [
        open_measurable(model, **({} if has_own and not all(artifacts) else options))
        for model, has_own in zip(args.models, artifacts, strict=True)
    ]


def render(rows: list[Measured], programs: list[str], machine: Machine, threads: int, images: str) -> str:
    """The report as text for a terminal."""
    calls = rows[0].run.calls
    lines = [
        f"{machine}; {threads} thread{'s' * (threads != 1)} for the model; {images}; "
        f"{calls} call{'s' * (calls != 1)} of each model and batch, in turns",
        *aligned([(*HEAD, *HEAD_DECODING), *map(_cells, rows, programs)], right=True),
        "ratio: of the median to that of the first model. decode: from files to tensors, in one thread;",
        "threads: how many decode as fast as the model runs (predict --threads, serve --decode-threads)",
    ]
    if calls < FEW:
        lines.append(f"p99 of fewer than {FEW} calls is close to the largest: --rounds {FEW} or more.")
    return "\n".join(lines)


def _cells(row: Measured, name: str) -> list[str]:
    times = [f"{value:.2f}" for value in (row.run.p50_ms, row.run.p95_ms, row.run.p99_ms)]
    decoding = [f"{row.decode.p50_ms:.2f}", f"{row.decode_img_s:.0f}", str(row.decode_threads)]
    return [row.model, name, str(row.batch), *times, f"{row.img_s:.1f}", f"{row.ratio:.2f}", *decoding]
