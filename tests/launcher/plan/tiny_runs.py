"""A tiny model with experts, runs of it on some ranks, and their traced workload."""

from functools import cache

from launcher.config.schema import ParallelConfig, RunConfig
from launcher.plan.base.hardware import Device
from launcher.plan.time.workload import Workload, describe
from swin_moe.config import ModelConfig
from tests.models import small_moe, small_run, small_swin

# 16 x 16 pixels, patches of 4: maps of 4 x 4 and 2 x 2 tokens, windows of 2 x 2; widths 8 and 16
MOE = small_moe(blocks=((), (0,)), expert_dropout=0.0)
TINY = small_swin(image_size=16, num_classes=10, depths=(2, 1), window_size=2, moe=MOE)


@cache
def work_of(model: ModelConfig, device: Device = "cpu") -> Workload:
    return describe(model, device=device)


def run_of(
    model: ModelConfig = TINY, ranks: int = 4, micro: int = 2, steps: int = 1, **parallel: object
) -> RunConfig:
    options = ParallelConfig(**parallel)  # type: ignore[arg-type]
    return small_run(model, micro_batch_size=micro, ranks=ranks, grad_accum_steps=steps, parallel=options)
