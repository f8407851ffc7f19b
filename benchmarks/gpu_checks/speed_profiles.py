"""What a training step does on a GPU, by torch.profiler: launches, idle time, the longest kernels."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_checks.place import CheckContext, Row, row
from gpu_checks.subjects import Training, Work, alone, config_of, free, interleaved, run_config
from swin_moe.backbone.model import build_model

NAMES = ("Swin-T", "SwinV2-T", "Swin-MoE-S")
TOP = 20
NO_KERNELS = ("Memcpy", "Memset", "Optimizer.", "ProfilerStep", "##")


def profiles(place: CheckContext) -> Iterator[Row]:
    """Forward, cross-entropy and backward of three models, then whole steps of the engine."""
    batch = 4 if place.rehearsal else 128
    with alone(place) as device:
        _ = profiled(
            partial(torch.zeros, 1, device=device), place
        )  # the first one starts the profiler itself
        for name in NAMES:
            try:
                yield from _model(place, device, name, batch)
            except Exception as error:
                yield row(name, ok=False, error=f"{type(error).__name__}: {error}"[:400])
            free()
        for name in ("Swin-MoE-S", "Swin-T"):
            try:
                training = Training(run_config(config_of(name, place), batch, augment=True), device)
                yield from _rows(place, f"{name} engine step, augmented", training.step)
                training.close()
            except Exception as error:
                yield row(f"{name} engine", ok=False, error=f"{type(error).__name__}: {error}"[:400])
            free()


def _model(place: CheckContext, device: torch.device, name: str, batch: int) -> Iterator[Row]:
    import models

    config = config_of(name, place)
    model = build_model(config).to(device, torch.bfloat16)
    images = torch.randn(batch, 3, *config.image_sides, device=device, dtype=torch.bfloat16)
    labels = torch.randint(0, config.num_classes, (batch,), device=device)
    yield from _rows(place, name, partial(models.training_step, model, images, labels))


def _rows(place: CheckContext, what: str, step: Work) -> Iterator[Row]:
    """The sums of a step, and a row for each of its longest kernels."""
    found = interleaved(place, {"step": step})["step"]
    if isinstance(found, str):
        yield row(what, ok=False, error=found)
        return
    events = profiled(step, place)
    kernels = [e for e in events if not e.name().startswith(NO_KERNELS)]
    busy = busy_ms(events)
    yield row(
        what,
        ms=found,
        kernels=len(kernels),
        copies_and_fills=len(events) - len(kernels),
        gpu_busy_ms=busy,
        idle_share=max(0.0, 1.0 - busy / found),
        host_us_per_kernel=found * 1e3 / max(1, len(kernels)),
    )
    times, counts = Counter[str](), Counter[str]()
    for event in kernels:
        times[event.name()] += event.duration_ns()
        counts[event.name()] += 1
    for rank, (name, nanoseconds) in enumerate(times.most_common(3 if place.rehearsal else TOP), start=1):
        milliseconds = nanoseconds / 1e6
        figures = {"ms": milliseconds, "share": milliseconds / max(busy, 1e-9), "calls": counts[name]}
        yield row(f"{what} kernel {rank}", kernel=short(name), **figures)


def profiled(step: Work, place: CheckContext) -> list[Any]:
    """What ran on the device during a step: kernels, copies and fills; on a CPU, operators."""
    activity = ProfilerActivity.CUDA if place.on_gpu else ProfilerActivity.CPU
    wanted = DeviceType.CUDA if place.on_gpu else DeviceType.CPU
    place.synchronize()
    with profile(activities=[activity]) as found:
        step()
        place.synchronize()
    assert found.profiler is not None
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    return [e for e in events if e.device_type() == wanted and not _is_annotation(e)]


def _is_annotation(event: Any) -> bool:
    """Whether an event is a range that somebody named, which has kernels in it."""
    return bool(getattr(event, "is_user_annotation", bool)()) or "#" in event.name()


def busy_ms(events: list[Any]) -> float:
    """Milliseconds in which at least one of the events was under way."""
    end = total = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        stop = event.start_ns() + event.duration_ns()
        total += max(0, stop - max(end, event.start_ns()))
        end = max(end, stop)
    return total / 1e6


def short(name: str) -> str:
    """A kernel's name without what all of them begin with, in at most 80 characters."""
    for prefix in ("void ", "at::native::", "(anonymous namespace)::"):
        name = name.removeprefix(prefix)
    return name[:80]
