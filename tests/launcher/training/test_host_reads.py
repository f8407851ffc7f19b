"""How often a step of training makes the host wait for a GPU, counted on the CPU: a new wait fails here."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.config.schema import OptimConfig
from launcher.metrics.accumulator import MetricAccumulator
from launcher.tasks.classification.task import ClassificationTask
from launcher.tasks.param_groups import parameter_groups
from launcher.tasks.spec import TaskContext
from parallel.ranks.host import send
from parallel.ranks.mesh import ParallelDims, build_mesh
from parallel.zero.engine import Engine
from parallel.zero.options import EngineOptions
from swin_moe.random.keyed import sample_keys
from tests.distributed import run_on_ranks
from tests.models import small_run
from tests.parallel.host_reads import HostWaits
from tests.parallel.training import model_config

DEVICE = torch.device("cpu")


def batch() -> Batch:
    return Batch(
        tensors={"image": torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "label": torch.arange(4)},
        positions=torch.arange(4),
        weights=torch.ones(4),
    )


def waits_of_a_step(stage: int, precision: str, experts: bool) -> dict[tuple[str, str], int]:
    """Of the third step: waits by what and where, without those of the MoE layers."""
    mesh = build_mesh(ParallelDims(world_size=dist.get_world_size()))
    model_options = model_config() if experts else replace(model_config(), moe=None)
    config = small_run(model_options)
    task = ClassificationTask(config, TaskContext(mesh=mesh, device=DEVICE))
    model = task.model
    options: Any = {"zero_stage": stage, "precision": precision, "max_grad_norm": 5.0}
    engine = Engine(
        model,
        parameter_groups(model, OptimConfig()),
        mesh,
        EngineOptions(micro_batch_size=4, grad_accum_steps=1, **options),
    )
    engine.train()
    found: dict[tuple[str, str], int] = {}
    for _ in range(3):
        one = batch()
        with HostWaits(one["image"], one["label"], one.positions, one.weights) as waits:
            step(engine, task, one)
        found = dict(waits.found)
    return {
        key: count for key, count in found.items() if "swin_moe/" not in key[1] and "exchange" not in key[1]
    }


def step(engine: Engine, task: ClassificationTask, one: Batch) -> None:
    """As in launcher/training/trainer.py."""
    tally = MetricAccumulator(rank=0, world_size=1)
    keys = send(sample_keys(0, one.positions), DEVICE)
    output = task.step(engine, task.inputs(one), keys)
    total_loss = output.loss + output.aux_loss
    engine.backward(total_loss)
    engine.step(1e-3)
    losses = {"loss": output.loss, "aux_loss": output.aux_loss, "total_loss": total_loss}
    tally.add(losses, output.moe)
    tally.reduce({"bytes": 5}, {"stop": False})
    assert engine.grad_norm > 0


CASES = [
    # stage, precision, experts -> waits
    (1, "bf16", True, 2),  # the norm, and the sums
    (1, "bf16", False, 4),  # DeepSpeed asks whether the norm is valid, and whether to clip
]


def all_cases() -> list[dict[tuple[str, str], int]]:
    return [waits_of_a_step(*case[:3]) for case in CASES]


@pytest.fixture(scope="module")
def found() -> list[dict[tuple[str, str], int]]:
    return run_on_ranks(all_cases, 1)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_waits_at_most_four_times_outside_of_its_moe_layers(case: Any, found: Any) -> None:
    waits = found[CASES.index(case)]
    assert sum(waits.values()) == case[3] <= 4, waits


def test_the_counter_sees_every_kind_of_wait() -> None:
    device = torch.ones(3, device="cpu")
    with HostWaits() as waits:
        _: Any = [device.cpu(), device.tolist(), device.sum().item(), bool(device.any()), device.nonzero()]
        _ = [device[device > 0], device.repeat_interleave(torch.ones(3, dtype=torch.int64, device="cpu"))]
        _ = [torch.tensor([1.0], device="cpu"), torch.tensor([1.0]).to("cpu")]
    assert waits.total == 9, waits.found


def test_the_counter_lets_pass_what_does_not_wait() -> None:
    device = torch.ones(3, device="cpu")
    with HostWaits() as waits:
        known: Tensor = torch.tensor([1.0, 2.0])
        assert known.sum().item() == 3
        there = send(known, DEVICE)
        found = torch.cat([there, device]).sum()
        host = found.cpu()
        assert host.item() + float(host * 2) == 18
    assert waits.total == 1, waits.found
