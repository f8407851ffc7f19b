"""Whole models in bf16 beside timm's and transformers', and optimizer steps through our engine."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from gpu_checks.cases import guarded
from gpu_checks.place import CheckContext, Row, row
from gpu_checks.subjects import (
    PEAK_TFLOPS,
    Training,
    Work,
    alone,
    config_of,
    copy_tb_s,
    free,
    gemm_tflops,
    interleaved,
    run_config,
    settings_of,
    speeds,
    timm_model,
    weights_gb,
)
from swin_moe.backbone.model import build_model
from swin_moe.config import ModelConfig

FIRST = (("Swin-T", 128), ("SwinV2-T", 128), ("Swin-MoE-S", 128), ("Swin-S dense", 128))
LAST = (("Swin-B", 64), ("SwinV2-B", 64))
ENGINES = ("Swin-T", "Swin-MoE-S")


def models(place: CheckContext) -> Iterator[Row]:
    """Ceilings of this GPU, the models, the engine, then the larger models."""
    with alone(place) as device:
        gemm, copied = gemm_tflops(place, device), copy_tb_s(place, device)
        yield row("ceilings", gemm_tflops=gemm, copy_tb_s=copied, peak_tflops=PEAK_TFLOPS)
        for name, batch in FIRST:
            yield from guarded(name, _models(place, device, name, batch, gemm))
            free()
        for name in ENGINES:
            yield from guarded(f"{name} engine", _engine(place, device, name, gemm))
            free()
        for name, batch in LAST:
            yield from guarded(name, _models(place, device, name, batch, gemm))
            free()


def contestants(
    name: str, config: ModelConfig, place: CheckContext, device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The implementations of a model that can be built, in bf16, and why the others cannot."""
    import models

    makers = {"ours": lambda: build_model(config)}
    if name in models.TIMM:
        makers["timm"] = lambda: timm_model(name, config, place)
        makers["transformers"] = lambda: models.transformers_model(config)
    built, errors = {}, {}
    for who, make in makers.items():
        try:
            built[who] = make().to(device, torch.bfloat16)
        except Exception as error:
            errors[who] = f"{type(error).__name__}: {error}"[:400]
    return built, errors


def _models(place: CheckContext, device: torch.device, name: str, batch: int, gemm: float) -> Iterator[Row]:
    """Training and evaluation of every implementation of a model."""
    import models

    config, batch = config_of(name, place), 4 if place.rehearsal else batch
    images = torch.randn(batch, 3, *config.image_sides, device=device, dtype=torch.bfloat16)
    labels = torch.randint(0, config.num_classes, (batch,), device=device)
    built, errors = contestants(name, config, place, device)
    for who, error in errors.items():
        yield row(f"{name} {who}", ok=who != "ours" and None, error=error)

    def training(who: str, model: nn.Module) -> None:
        settings_of(who, place)
        models.training_step(model, images, labels)

    def forward(who: str, model: nn.Module) -> None:
        settings_of(who, place)
        models.forward(model, images)

    for task, passes, function in (("training", 3, training), ("forward", 1, forward)):
        works: dict[str, Work] = {who: partial(function, who, model) for who, model in built.items()}
        for who, found in interleaved(place, works).items():
            what = f"{name} {task} {who}"
            if isinstance(found, str):
                yield row(what, ok=False if who == "ours" else None, error=found)
                continue
            peak = weights_gb(built[who]) + place.peak_gb(works[who])
            figures = speeds(config, batch, found, passes, gemm)
            yield row(what, who=who, model=name, task=task, batch=batch, **figures, peak_gb=peak)
    settings_of("ours", place)


def _engine(place: CheckContext, device: torch.device, name: str, gemm: float) -> Iterator[Row]:
    """Optimizer steps under DeepSpeed, with and without augmentation and drop path."""
    config, batch = config_of(name, place), 4 if place.rehearsal else 128
    training = Training(run_config(config, batch), device)
    for augment, drop_path in ((False, True), (True, True), (False, False), (True, False)):
        training.augment(augment)
        training.drop_paths(drop_path)
        found = interleaved(place, {"step": training.step}, rounds=5, burst=2)["step"]
        what = f"{name} engine step, augment {'on' if augment else 'off'}"
        what += f", drop path {'on' if drop_path else 'off'}"
        if isinstance(found, str):
            yield row(what, ok=False, error=found)
            continue
        peak = place.peak_gb(training.step)
        loss = training.step()
        yield row(
            what,
            ok=bool(torch.isfinite(Tensor([loss]))),
            batch=batch,
            **speeds(config, batch, found, 3, gemm),
            step_peak_gb=peak,
            loss=loss,
        )
    training.close()
