"""Where a step makes the host wait for the GPU."""

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gpu_checks.commands import ON_CPU, ROOT
from gpu_checks.place import CheckContext, Row, row

PACKAGES = ("launcher", "parallel", "swin_moe", "data_shards")
ASKING = (Path(__file__).name, "mock.py", "warnings.py")  # files of frames that only count
EXPLICIT = ("torch.cuda.synchronize", "torch.cuda.Stream.synchronize", "torch.cuda.Event.synchronize")


@dataclass(frozen=True, kw_only=True)
class Waits:
    """What a step is made of, and how often the host may wait in it."""

    what: str
    experts: bool
    expected: int
    padded: bool = False
    augment: bool = False
    evaluates: bool = False


# outside of the MoE layers as tests/launcher/training/test_host_reads.py counts them: the norm and the sums;
# without experts DeepSpeed also asks whether the norm is valid, and whether to clip. In the MoE layers of one
# rank none, as tests/gpu/test_launches.py has it. An evaluation sends the seconds of each of its two batches,
# and reads the sums once.
WAITS = (
    Waits(what="dense", experts=False, expected=4),
    Waits(what="experts, dropless", experts=True, expected=2),
    Waits(what="experts, padded", experts=True, expected=2, padded=True),
    Waits(what="dense, augmented on the device", experts=False, expected=4, augment=True),
    Waits(what="dense, evaluation of 2 batches", experts=False, expected=4, evaluates=True),
    Waits(what="experts, evaluation of 2 batches", experts=True, expected=4, evaluates=True),
)


def host_reads(place: CheckContext) -> Iterator[Row]:
    """Of the third step: each time that a GPU makes the host wait, by the project's line."""
    if not place.on_gpu:
        os.environ.update(ON_CPU)
    from parallel.ranks.discover import discover
    from parallel.ranks.init import join, leave, prepare_process

    ranks = discover()
    device = prepare_process(ranks)
    join(ranks, device)
    for case in WAITS:
        try:
            yield from _waits(case, device, place)
        except Exception as error:
            traceback.print_exc()
            yield row(case.what, ok=False, error=f"{type(error).__name__}: {error}"[:400])
        if place.on_gpu:
            torch.cuda.empty_cache()
    leave()


def _waits(case: Waits, device: torch.device, place: CheckContext) -> Iterator[Row]:
    step, host = _prepared(case, device, place)
    step()
    step()
    place.synchronize()
    explicit: Counter[str] = Counter()
    if place.on_gpu:
        with synchronizing() as found, _explicit(explicit):
            step()
    else:
        found = _counted_on_cpu(step, host)
    yield row(
        f"{case.what}: waits of a step",
        ok=sum(found.values()) <= case.expected,
        found=sum(found.values()),
        expected=case.expected,
        explicit=sum(explicit.values()),
        where="; ".join(f"{count} x {at}" for at, count in found.most_common()),
        explicit_where="; ".join(f"{count} x {at}" for at, count in explicit.most_common()),
    )


def _prepared(
    case: Waits, device: torch.device, place: CheckContext
) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """A step, and the tensors of its batch, which are on the host."""
    from data_shards.augment.pipeline import AugmentConfig
    from data_shards.stream.batch import Batch
    from launcher.config.schema import DataConfig, OptimConfig, RunConfig
    from launcher.tasks.classification.task import ClassificationTask
    from launcher.tasks.param_groups import parameter_groups
    from launcher.tasks.spec import TaskContext
    from parallel.experts.exchange import ExchangeOptions
    from parallel.ranks.mesh import ParallelDims, build_mesh
    from parallel.zero.engine import Engine
    from parallel.zero.options import EngineOptions

    data = DataConfig(train="x", val="x", augment=AugmentConfig() if case.augment else None)
    model_config = _model_config(case, place)
    config = RunConfig(run_dir="x", model=model_config, data=data)
    mesh, exchange = build_mesh(ParallelDims(world_size=1)), ExchangeOptions(padded=case.padded)
    task = ClassificationTask(config, TaskContext(mesh=mesh, device=device, exchange=exchange))
    model = task.model
    images = 4 if place.rehearsal else 16
    options = EngineOptions(
        zero_stage=1, precision="bf16", max_grad_norm=5.0, micro_batch_size=images, grad_accum_steps=1
    )
    engine = Engine(model, parameter_groups(model, OptimConfig()), mesh, options)
    engine.train()
    side = config.model.image_size
    pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8)
    one = Batch(
        tensors={
            "image": pixels.pin_memory() if place.on_gpu else pixels,
            "label": torch.arange(images) % 10,
        },  # as the stream's are
        positions=torch.arange(images),
        weights=torch.ones(images),
    )
    run = partial(_evaluate if case.evaluates else _train, engine, task, one, device)
    return run, [one["image"], one["label"], one.positions, one.weights]


def _model_config(case: Waits, place: CheckContext) -> Any:
    from swin_moe.recipes import load_model_config

    small: dict[str, Any] = {"num_classes": 10}
    if place.rehearsal:
        small |= {"embed_dim": 32, "depths": (1, 2), "num_heads": (1, 2), "image_size": 56}
    if not case.experts:
        return load_model_config("swin_tiny_patch4_window7_224", **small)
    moe: dict[str, Any] = {"routing_group_images": 4, "capacity_factor": 0.0, "batch_prioritized": False}
    if case.padded:
        moe |= {"capacity_factor": 1.25}
    if place.rehearsal:
        moe |= {"blocks": ((), (1,))}
        small |= {"image_size": 48, "window_size": 6}
    return load_model_config("swin_moe_small_patch4_window12_192_8expert_32gpu_22k", **small, moe=moe)


def _train(engine: Any, task: Any, one: Any, device: torch.device) -> None:
    """As in launcher/training/trainer.py."""
    from launcher.metrics.accumulator import MetricAccumulator
    from parallel.ranks.host import send
    from swin_moe.random.keyed import sample_keys

    tally = MetricAccumulator(rank=0, world_size=1)
    keys = send(sample_keys(0, one.positions), device)
    output = task.step(engine, task.inputs(one), keys)
    total_loss = output.loss + output.aux_loss
    engine.backward(total_loss)
    engine.step(1e-3)
    losses = {"loss": output.loss, "aux_loss": output.aux_loss, "total_loss": total_loss}
    tally.add(losses, output.moe)
    tally.reduce({"bytes": 5}, {"stop": False})


@dataclass(frozen=True)
class _Stream:
    """Stands for an EvalStream: two batches of one rank."""

    batches: tuple[Any, ...]
    dp_rank: int = 0
    dp_size: int = 1

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _evaluate(engine: Any, task: Any, one: Any, device: torch.device) -> None:
    from launcher.evaluation.loop import Evaluated, evaluate

    stream: Any = _Stream((one, replace(one)))
    evaluated = Evaluated(model=engine.module, task=task, device=device, heartbeat=lambda: None)
    evaluate(evaluated, stream)


def _counted_on_cpu(step: Callable[[], None], host: list[torch.Tensor]) -> Counter[str]:
    """What the tests' counter sees outside of the MoE layers and the augmentation, which differ on a CPU."""
    from tests.parallel.host_reads import HostWaits

    with HostWaits(*host) as waits:
        step()
    inside = ("swin_moe/", "exchange", "data_shards/")
    found = {key: n for key, n in waits.found.items() if not any(part in key[1] for part in inside)}
    return Counter({f"{what} at {where}": count for (what, where), count in found.items()})


@contextmanager
def synchronizing() -> Iterator[Counter[str]]:
    """Count what torch says of synchronizing operations within it, by the line that asked for them."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[_where()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _explicit(found: Counter[str]) -> Iterator[None]:
    """Count calls that wait by name, of which the debug mode does not warn."""

    def counting(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found[f"{name} at {_where()}"] += 1
            return real(*args, **kwargs)

        return call

    patches = []
    for path in EXPLICIT:
        *owner, name = path.split(".")
        target: Any = torch.cuda if len(owner) == 2 else getattr(torch.cuda, owner[-1])
        patches.append(mock.patch.object(target, name, counting(getattr(target, name), path)))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _where() -> str:
    """The project's innermost line, and behind it the innermost line of all."""
    frames = [f for f in traceback.extract_stack() if Path(f.filename).name not in ASKING]
    ours = [f for f in frames if _package(f.filename) in PACKAGES]
    inner = frames[-1]
    last = f"{Path(inner.filename).name}:{inner.lineno}"
    if not ours:
        return f"? < {last}"
    at = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}"
    return at if ours[-1] is inner else f"{at} < {last}"


def _package(filename: str) -> str:
    """The project's package that a file is of; "" for others."""
    path = Path(filename)
    return path.relative_to(ROOT).parts[0] if path.is_relative_to(ROOT) else ""
