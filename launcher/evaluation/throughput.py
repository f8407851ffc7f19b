"""How fast the model alone is: repeated forward passes over one batch, after a warm-up."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from launcher.evaluation.context import EvalContext
from launcher.evaluation.loop import eval_stream, timed_call
from launcher.evaluation.modes import EvalMode, standard_modes
from parallel.ranks.collectives import gather_objects
from parallel.ranks.host import send
from swin_moe.backbone.flops import cost
from swin_moe.backbone.model import SwinTransformer
from swin_moe.random.keyed import sample_keys


@torch.no_grad()
def measure(context: EvalContext, factor: float | None, *, warm_up: int, repeats: int) -> None:
    """Time forward passes in every mode, print them and write throughput.json; every rank calls it together.

    The reference's `--throughput` has 50 passes of warm-up and the mean of 30; this is their median, which a
    hiccup does not move. Images and keys are on the device before the clock starts.

    Of videos one view is measured: an image of the figures is a clip.

    Args:
        context: the checkpoint; its backbone is measured, and the classifier of a model that has one.
        factor: of the mode with a capacity; None is that of the configuration.
        warm_up: passes that are not timed, at least one.
        repeats: timed passes.
    """
    config, modes = context.config, standard_modes(context.config.model.moe, factor)
    with eval_stream(config, context.mesh, grouped=config.model.moe is not None) as stream:
        batch = next(iter(stream))
        images = next(iter(context.views(batch)))
    keys = send(sample_keys(0, batch.positions), context.device)
    flops, rows = 2 * cost(config.model).flops, []  # a multiply-add is two
    backbone = context.backbone
    run = backbone if isinstance(backbone, SwinTransformer) else backbone.forward_pooled
    for mode in modes:
        call = replace(mode.call, by_image=True)
        forward = partial(run, images, keys, call)
        times_s: list[float] = []
        for _ in range(warm_up + repeats):
            _, elapsed_s = timed_call(forward, context.device)
            times_s.append(elapsed_s)
            context.heartbeat()
        rows.append(figures(mode, times_s[warm_up:], len(images), flops))
        context.say(f"{context.name}, {mode.name}: {line(rows[-1])}")
    context.write_json("throughput", {"device": device_name(context.device), "modes": rows})


def figures(mode: EvalMode, times_s: Sequence[float], images: int, flops: int) -> dict[str, Any]:
    """What was measured on all ranks; a pass takes as long as on the slowest one.

    Args:
        mode: what was measured.
        times_s: of this rank's passes.
        images: a pass and rank.
        flops: of one image.
    """
    passes_s = [max(times) for times in zip(*gather_objects(list(times_s)), strict=True)]
    ranks, median_s = len(gather_objects(None)), median(passes_s)
    images_s = ranks * images / median_s
    return {
        "way": mode.name,
        "images_s": images_s,
        "flop_s": images_s * flops,
        "median_s": median_s,
        "fastest_s": min(passes_s),
        "slowest_s": max(passes_s),
        "repeats": len(passes_s),
        "batch_size": images,
        "ranks": ranks,
        "flops_an_image": flops,
    }


def line(row: dict[str, Any]) -> str:
    """The figures for a person."""
    return (
        f"{row['images_s']:.1f} images/s, {row['flop_s'] / 1e9:.2f} GFLOP/s; median "
        f"{row['median_s'] * 1e3:.2f} ms of {row['repeats']} passes ({row['fastest_s'] * 1e3:.2f} to "
        f"{row['slowest_s'] * 1e3:.2f}), {row['batch_size']} images a rank, {row['ranks']} ranks"
    )


def device_name(device: torch.device) -> str:
    """The device for a person."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
