"""Checks of memory: staging of a checkpoint, the allocator's segments, and what the planner predicts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpu_checks.place import CheckContext, Row, row
from gpu_checks.subjects import Training, alone, config_of, free, interleaved, run_config

PLANNED = (("Swin-T", 128), ("Swin-MoE-S", 128), ("SwinV2-T", 128), ("SwinV2-B", 64))
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
HERE = Path(__file__).resolve().parent
STEPS, LIMIT_S = 30, 40


def staging(place: CheckContext) -> Iterator[Row]:
    """The copy of a checkpoint to host memory that a step waits for, and the allocator's segments."""
    with alone(place) as device:
        yield from _staging(place, device)
    free()
    yield from _segments(place)


def _staging(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """Three takes of what a Swin-MoE-S of 32 experts saves; the first one pins the memory."""
    from parallel.checkpoint.staging import StagingBuffers

    config = run_config(config_of("Swin-MoE-S 32 experts", place), 4 if place.rehearsal else 128)
    training = Training(config, device)
    buffers = StagingBuffers()
    for number in (1, 2, 3):
        place.synchronize()
        began = time.perf_counter()
        taken = buffers.copy(training.masters, training.mesh)
        seconds = time.perf_counter() - began
        gb = sum(x.numel() * x.element_size() for x in taken.values()) / 1e9
        pinned = all(x.is_pinned() for x in taken.values()) if place.on_gpu else None
        figures = {"seconds": seconds, "gb": gb, "gb_s": gb / seconds, "tensors": len(taken)}
        yield row(
            f"StagingBuffers.copy {number}", ok=pinned, **figures, reserved_gb=buffers.pinned_bytes / 1e9
        )
    whole = {n: p for n, p in training.masters.module.named_parameters() if f"master/{n}" in taken}
    name = max(whole, key=lambda n: whole[n].numel())
    master = training.masters.read(whole[name])["master"].cpu()
    yield row(f"what was staged of {name} is the master", ok=torch.equal(taken[f"master/{name}"], master))
    yield _one_copy(place, device)
    training.close()


def _one_copy(place: CheckContext, device: torch.device) -> Row:
    """The bound: one large tensor to pinned memory."""
    size = 2**20 if place.rehearsal else 2**30
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty(size, dtype=torch.uint8, pin_memory=place.on_gpu)
    milliseconds = place.milliseconds(lambda: target.copy_(source, non_blocking=True), repeats=3)
    return row("one copy to pinned memory", ms=milliseconds, gb_s=size / milliseconds / 1e6)


def _segments(place: CheckContext) -> Iterator[Row]:
    """Reserved beside allocated memory after dropless steps, with and without expandable segments."""
    code = (
        "import sys; from gpu_checks.memory import dropless_steps; dropless_steps(sys.argv[1], sys.argv[2])"
    )
    paths = [str(HERE.parent), str(HERE.parent.parent)]
    if own := os.environ.get("PYTHONPATH"):
        paths.append(own)
    running = {}
    for setting in (True, False)[: 1 if place.rehearsal else 2]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        env |= dict.fromkeys(ALLOCATOR, f"expandable_segments:{setting}")
        command = [sys.executable, "-c", code, place.device.type, str(place.folder)]
        log = open(place.folder / f"segments-{setting}.log", "w+")  # noqa: SIM115
        running[setting] = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT), log
    end = time.monotonic() + LIMIT_S
    for setting, (process, log) in running.items():
        what = f"{STEPS} dropless steps, expandable_segments:{setting}"
        try:
            status: object = process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = "too long"
        log.seek(0)
        lines = log.read().splitlines()
        log.close()
        found = [line for line in lines if line.startswith('{"allocated')]
        if status == 0 and found:
            yield row(what, **json.loads(found[-1]))
        else:
            yield row(what, ok=False, status=status, said=" | ".join(lines[-4:])[-600:])


def dropless_steps(kind: str, folder: str) -> None:
    """In a process of its own: steps of a dropless Swin-MoE-S, evaluations between them, printed as JSON."""
    from dataclasses import replace

    place = CheckContext(torch.device(kind), Path(folder), rehearsal=kind == "cpu")
    model = config_of("Swin-MoE-S", place)
    assert model.moe is not None
    moe = replace(model.moe, capacity_factor=0.0, eval_capacity_factor=0.0)
    with alone(place) as device:
        batch = 4 if place.rehearsal else 128
        training = Training(run_config(replace(model, moe=moe), batch), device)
        sides = model.image_sides
        for number in range(2 if place.rehearsal else STEPS):
            training.step()
            if number % 5 == 4:  # other sizes come between, as in a run
                training.engine.train(False)
                images = torch.randn(batch - 8 * (number % 3), 3, *sides, device=device, dtype=torch.bfloat16)
                with torch.no_grad():
                    training.engine.module(images)
                training.engine.train()
        place.synchronize()
        figures = {"allocated_gb": 0.0}
        if place.on_gpu:
            free_gb = torch.cuda.mem_get_info()[0] / 1e9
            peaks = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
            figures = {"allocated_peak_gb": peaks[0], "reserved_peak_gb": peaks[1], "free_gb": free_gb}
            figures |= {"reserved_over_allocated": peaks[1] / peaks[0]}
            figures["allocator_retries"] = torch.cuda.memory_stats().get("num_alloc_retries", 0)
        print(json.dumps(figures), flush=True)
        training.close()


def plan(place: CheckContext) -> Iterator[Row]:
    """Steps and memory as the planner predicts them, from the data sheet and calibrated, and as measured."""
    from launcher.plan.base.hardware import Hardware, load_hardware
    from launcher.plan.time.calibrate import measure, write

    with alone(place) as device:
        profiles: dict[str, Hardware] = {}
        try:
            profiles["sheet"] = load_hardware("h200")
            began = time.perf_counter()
            profiles["calibrated"] = _calibrate(place, measure, device)
            write(profiles["calibrated"], place.folder / "here.yaml")
            load_hardware(str(place.folder / "here.yaml"))  # what was written can be read
            yield row(
                "calibrate", ok=True, seconds=time.perf_counter() - began, **_of(profiles["calibrated"])
            )
        except Exception as error:
            yield row("calibrate", ok=False, error=f"{type(error).__name__}: {error}"[:400])
        for name, batch in PLANNED[:2] if place.rehearsal else PLANNED:
            try:
                yield _planned(place, device, name, batch, profiles)
            except Exception as error:
                yield row(name, ok=False, error=f"{type(error).__name__}: {error}"[:400])
            free()


def _calibrate(place: CheckContext, measure: Any, device: torch.device) -> Any:
    """A profile of this machine; in a rehearsal each figure is measured once."""
    if place.rehearsal:
        from launcher.plan.base import stopwatch
        from launcher.plan.time import calibrate, zero3_hooks

        zero3_hooks.DEPTHS = 1, 2
        stopwatch.BUDGET_S, stopwatch.LEAST = 0.0, 1
        calibrate.SIDES, calibrate.SIZES, calibrate.ROWS = (16, 32), (2**10, 2**12), 64
    return measure(device)


def _of(hardware: Any) -> dict[str, float]:
    """The figures of a profile that say most."""
    figures = {
        "product_tflops_bf16": hardware.products["bf16"][-1][1],
        "launch_us": hardware.launch_us,
        "memory_gib": hardware.memory_gib,
    }
    return figures | {f"{kind}_gb_s": curve[-1][1] for kind, curve in hardware.passes.items()}


def _planned(
    place: CheckContext, device: torch.device, name: str, batch: int, profiles: dict[str, Any]
) -> Row:
    """One model: predicted and measured, of an optimizer step at ZeRO stage 1 without augmentation."""
    from launcher.plan.memory.estimate import predict_memory
    from launcher.plan.time.compute_cost import ComputeCost, compute_cost
    from launcher.plan.time.estimate import FEED, predict_time

    config = run_config(config_of(name, place), 4 if place.rehearsal else batch)
    floor = torch.cuda.memory_allocated() if place.on_gpu else 0
    training = Training(config, device)
    found = interleaved(place, {"step": training.step})["step"]
    if isinstance(found, str):
        raise RuntimeError(found)
    measured_gb = reserved_gb = 0.0
    if place.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        training.step()
        place.synchronize()
        measured_gb = (torch.cuda.max_memory_allocated() - floor) / 1e9
        reserved_gb = torch.cuda.max_memory_reserved() / 1e9
    training.close()
    figures: dict[str, Any] = {"measured_ms": found}
    began, work = time.perf_counter(), None
    for profile, hardware in profiles.items():
        work = work or compute_cost(config, hardware).work
        cost = ComputeCost(work=work, hardware=hardware, precision=config.train.precision)
        time_of = predict_time(config, [1], hardware, cost)
        feed = dict(time_of.items).get(FEED, 0.0)  # here there is none
        figures[f"predicted_ms_{profile}"] = predicted = (time_of.step_s - feed) * 1e3
        figures[f"ratio_ms_{profile}"] = predicted / found
    memory = predict_memory(config, [1], "cuda")
    figures |= {"predicted_gb": memory.peak_bytes / 1e9, "measured_gb": measured_gb}
    figures |= {"reserved_gb": reserved_gb, "moment": memory.moment}
    figures["prediction_s"] = time.perf_counter() - began
    if measured_gb:
        figures["ratio_gb"] = memory.peak_bytes / 1e9 / measured_gb
    return row(name, batch=config.train.micro_batch_size, **figures)
