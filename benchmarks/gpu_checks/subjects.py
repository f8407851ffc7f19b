"""What the timed checks measure: models of our own and of others, alone and under the engine.

Sizes are those of the published models; in a rehearsal (`CheckContext.rehearsal`) two small stages alike.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from data_shards.augment.pipeline import AugmentConfig
from data_shards.stream.batch import Batch
from gpu_checks.place import CheckContext
from launcher.config.schema import DataConfig, OptimConfig, ParallelConfig, RunConfig, TrainConfig
from launcher.metrics.accumulator import MetricAccumulator
from launcher.tasks.registry import build_task, task_spec
from launcher.tasks.spec import TaskContext
from launcher.training.schedules import ema_momentum
from parallel.ranks.host import send
from parallel.ranks.init import join, leave, prepare_process
from parallel.ranks.rank import Ranks
from swin_moe.backbone.flops import cost
from swin_moe.config import ModelConfig
from swin_moe.random.keyed import DropPath, sample_keys
from swin_moe.recipes import load_model_config

PEAK_TFLOPS = 989.0  # of an H100 or H200 SXM in bf16, dense: NVIDIA's data sheet
RECIPES = {
    "Swin-MoE-S": "swin_moe_small_patch4_window12_192_8expert_32gpu_22k",
    "Swin-S dense": "swin_moe_small_patch4_window12_192_densebaseline_22k",
    "Swin-MoE-S 32 experts": "swin_moe_small_patch4_window12_192_32expert_32gpu_22k",
}
Work = Callable[[], object]


def device_of(place: CheckContext) -> torch.device:
    """Prepare this process as the launcher does, and say where it computes."""
    device = prepare_process(Ranks())
    return device if place.on_gpu else place.device


@contextmanager
def alone(place: CheckContext) -> Iterator[torch.device]:
    """Within it there is a process group of this process alone, which DeepSpeed wants."""
    device = device_of(place)
    join(Ranks(), device)
    try:
        yield device
    finally:
        leave()


def config_of(name: str, place: CheckContext) -> ModelConfig:
    """The model of a name of benchmarks/models.py or of RECIPES; a small one in a rehearsal."""
    from models import MODELS

    config = load_model_config(RECIPES[name]) if name in RECIPES else MODELS[name]
    if not place.rehearsal:
        return config
    small = replace(config, moe=None)
    if config.moe is not None:
        moe = replace(config.moe, blocks=((), (1,)), num_experts=4, routing_group_images=2)
    return replace(
        small,
        image_size=8 * config.window_size,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        num_classes=10,
        moe=None if config.moe is None else moe,
    )


@cache
def flops_of(config: ModelConfig) -> int:
    """FLOPs of one image forward, a multiply-add as 2."""
    return 2 * cost(config).flops


def speeds(
    config: ModelConfig, batch: int, milliseconds: float, passes: int, gemm_tflops: float
) -> dict[str, float]:
    """The figures of a row: milliseconds, images a second, TFLOP/s, and its share of two peaks.

    Args:
        config: of the model.
        batch: images.
        milliseconds: of a step.
        passes: forward passes that a step is worth: 1, or 3 with the backward pass.
        gemm_tflops: rate of a large product, measured here.
    """
    tflops = passes * flops_of(config) * batch / milliseconds / 1e9
    return {
        "ms": milliseconds,
        "images_s": batch / milliseconds * 1e3,
        "tflops": tflops,
        "mfu": tflops / PEAK_TFLOPS,
        "mfu_of_gemm": tflops / gemm_tflops,
    }


def gemm_tflops(place: CheckContext, device: torch.device) -> float:
    """TFLOP/s of a product of two random matrices in bf16."""
    n = 256 if place.rehearsal else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / place.milliseconds(lambda: a @ b) / 1e9


def copy_tb_s(place: CheckContext, device: torch.device) -> float:
    """TB/s of a copy within the device, read and written bytes together."""
    size = 2**20 if place.rehearsal else 2**32
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / place.milliseconds(lambda: target.copy_(source)) / 1e9


def interleaved(
    place: CheckContext, works: Mapping[str, Work], rounds: int = 5, burst: int = 2
) -> dict[str, float | str]:
    """Median milliseconds of each piece of work, or the error with which it failed in its first call.

    In each round every piece of work is done `burst` times in a row, so that the host may run ahead.
    """
    rounds, burst = (1, 1) if place.rehearsal else (rounds, burst)
    found: dict[str, float | str] = {}
    for name, work in works.items():
        try:
            for _ in range(1 if place.rehearsal else 3):
                work()
            place.synchronize()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:400]
            free()
    seconds: dict[str, list[float]] = {name: [] for name in works if name not in found}
    for _ in range(rounds):
        for name, times in seconds.items():
            place.synchronize()
            began = time.perf_counter()
            for _ in range(burst):
                works[name]()
            place.synchronize()
            times.append((time.perf_counter() - began) / burst)
    return found | {name: median(times) * 1e3 for name, times in seconds.items()}


def weights_gb(model: nn.Module) -> float:
    """GB of parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()]) / 1e9


def free() -> None:
    """Give back what nobody holds, to the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settings_of(who: str, place: CheckContext) -> None:
    """What a process sets for our own models, and torch's defaults for those of others."""
    ours = who.startswith("ours")
    if place.on_gpu:
        torch.backends.cuda.enable_cudnn_sdp(not ours)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = not ours


def timm_model(name: str, config: ModelConfig, place: CheckContext) -> nn.Module:
    """timm's model of a name of benchmarks/models.py.

    Raises:
        ImportError: timm is not installed.
    """
    import timm  # type: ignore[import-not-found]
    from models import TIMM

    options: dict[str, Any] = {}
    if place.rehearsal:
        options = {"img_size": config.image_size, "embed_dim": config.embed_dim, "depths": config.depths}
        options |= {"num_heads": config.num_heads, "num_classes": config.num_classes}
    return timm.create_model(TIMM[name], drop_path_rate=0.1, **options)


def run_config(model: ModelConfig, batch: int, *, augment: bool = False) -> RunConfig:
    """A run of one rank in bf16 at ZeRO stage 1, whose data are never read."""
    return RunConfig(
        run_dir="",
        model=model,
        data=DataConfig(train="", val="", augment=AugmentConfig() if augment else None),
        optim=OptimConfig(),
        train=TrainConfig(global_batch_size=batch, micro_batch_size=batch, precision="bf16"),
        parallel=ParallelConfig(zero_stage=1),
    )


class Training:
    """Optimizer steps as launcher/training/trainer.py takes them, on random pictures in pinned memory.

    The next step's inputs are made between the backward pass and the update, as input_prefetch.py has it.
    A process group must be there: see `alone`.

    Args:
        config: of the run.
        device: of the model.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        from launcher.tasks.param_groups import parameter_groups
        from launcher.training.builders import engine_options, run_mesh
        from parallel.zero.engine import Engine
        from parallel.zero.master_weights import MasterWeights

        self.config, self.device = config, device
        self.mesh, parallel = run_mesh(config.parallel, [1]), config.parallel
        spec = task_spec(config.task)
        self._context = TaskContext(mesh=self.mesh, device=device, exchange=parallel.expert_exchange)
        self.task = spec.build(config, self._context)
        model = self.task.model
        self.backbone = spec.backbone(model)
        groups = parameter_groups(model, config.optim, spec.parameters)
        self.engine = Engine(model, groups, self.mesh, engine_options(config, 1))
        self.masters = MasterWeights(self.engine.deepspeed, ema_momentum(config.train))
        self.engine.train()
        self._rates = {module: module.rate for module in model.modules() if isinstance(module, DropPath)}
        self._batch = self._pictures()
        self._ahead: tuple[Any, Tensor] | None = None
        self._steps = 0  # taken

    def _pictures(self) -> Batch:
        size, sides = self.config.train.micro_batch_size, self.config.model.image_sides
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (size, *sides, 3), dtype=torch.uint8, generator=generator)
        images = images.pin_memory() if self.device.type == "cuda" else images
        return Batch(
            tensors={
                "image": images.permute(0, 3, 1, 2),
                "label": torch.arange(size) % self.config.model.num_classes,
            },
            positions=torch.arange(size),
            weights=torch.ones(size),
        )

    def augment(self, on: bool) -> None:
        """Augment on the device from the next step on, or not."""
        data = replace(self.config.data, augment=AugmentConfig() if on else None)
        self.task = build_task(replace(self.config, data=data), self._context)
        self._ahead = None

    def drop_paths(self, on: bool) -> None:
        """Drop residual branches as configured, or none."""
        for module, rate in self._rates.items():
            module.rate = rate if on else 0.0

    def _inputs(self) -> tuple[Any, Tensor]:
        batch = self._batch
        self._batch = replace(batch, positions=batch.positions + len(batch.positions))
        return self.task.inputs(batch), send(sample_keys(0, batch.positions), self.device)

    def step(self) -> float:
        """One optimizer step: its loss."""
        inputs, keys = self._ahead or self._inputs()
        tally = MetricAccumulator(rank=0, world_size=1)
        output = self.task.step(self.engine, inputs, keys)
        total_loss = output.loss + output.aux_loss
        self.engine.backward(total_loss)
        self._ahead = self._inputs()
        self.engine.step(1e-4)
        losses = {"loss": output.loss, "aux_loss": output.aux_loss, "total_loss": total_loss}
        tally.add(losses, output.moe)
        totals = tally.reduce({}, {"stop": False})
        self._steps += 1
        self.masters.update_ema(self._steps)
        self.backbone.update_router_bias(totals.loads)
        return totals.sums["total_loss"]

    def close(self) -> None:
        """Give the memory back; the training is of no use afterwards."""
        self.engine.deepspeed.destroy()
        self.__dict__.clear()
        free()
