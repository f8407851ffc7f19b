"""A tiny model with experts, runs of it on some ranks, and their traced workload."""

from functools import cache

from launcher.config.schema import DataConfig, ParallelConfig, RunConfig, TrainConfig
from launcher.plan.base.hardware import Device
from launcher.plan.time.workload import Work, describe
from swin_moe.config import ModelConfig, MoEConfig

# 16 x 16 pixels, patches of 4: maps of 4 x 4 and 2 x 2 tokens, windows of 2 x 2; widths 8 and 16
MOE = MoEConfig(blocks=((), (0,)), num_experts=4, routing_group_images=2, expert_dropout=0.0)
TINY = ModelConfig(
    image_size=16, num_classes=10, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=2, moe=MOE
)


@cache
def work_of(model: ModelConfig, device: Device = "cpu") -> Work:
    return describe(model, device=device)


def run_of(
    model: ModelConfig = TINY, ranks: int = 4, micro: int = 2, steps: int = 1, **parallel: object
) -> RunConfig:
    return RunConfig(
        run_dir="",
        model=model,
        data=DataConfig(train="", val=""),
        train=TrainConfig(micro_batch_size=micro, global_batch_size=micro * ranks * steps),
        parallel=ParallelConfig(**parallel),  # type: ignore[arg-type]
    )
