"""What the hooks of ZeRO 3 take of the host, for calibration.

DeepSpeed runs Python code before and after every module, forward and backward. The slope over the depth of
models that are too small to compute leaves out what a step takes once; stage 1 is what a module takes anyway.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist

from launcher.plan.base.stopwatch import Stopwatch
from launcher.plan.time.workload import called_modules
from parallel.ranks.dims import ParallelDims
from parallel.ranks.mesh import Mesh, build_mesh
from parallel.zero.engine import Engine
from parallel.zero.options import EngineOptions, ZeroStage
from swin_moe.backbone.model import build_model
from swin_moe.config import ModelConfig

DEPTHS = 2, 8


def hooks_s(watch: Stopwatch, small: ModelConfig) -> float:
    """Seconds of one module's hooks, forward and backward; all ranks call it together.

    Args:
        watch: of this device.
        small: a model of one stage.
    """
    if not dist.is_initialized():
        return 0.0
    mesh = build_mesh(ParallelDims(world_size=dist.get_world_size()))
    added, called = [], []
    for depth in DEPTHS:
        model = replace(small, depths=(depth,))
        steps = [_step(model, mesh, watch.device, stage) for stage in (1, 3)]
        seconds = [watch.together(step, computes=True) for step in steps]
        added.append(seconds[1] - seconds[0])
        called.append(called_modules(build_model(model)))
    return max(0.0, (added[1] - added[0]) / (called[1] - called[0]))


def _step(config: ModelConfig, mesh: Mesh, device: torch.device, stage: ZeroStage) -> Callable[[], object]:
    """An optimizer step of a model under DeepSpeed."""
    model = build_model(config, mesh=mesh, sharded=stage == 3).to(device)
    group = {"name": "all", "params": list(model.parameters()), "weight_decay": 0.0}
    options = EngineOptions(
        zero_stage=stage, precision="fp32", max_grad_norm=0.0, micro_batch_size=1, grad_accum_steps=1
    )
    engine = Engine(model, [group], mesh, options)
    engine.train()
    images = torch.zeros(1, 3, *config.image_sides, device=device)
    keys = torch.zeros(1, dtype=torch.int64, device=device)

    def step() -> None:
        engine.backward(engine(images, keys).logits.sum())
        engine.step(0.0)

    return step
