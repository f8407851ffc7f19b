"""Blocks under torch.compile, ours as train.compile=true has them and timm's alike, beside eager ones."""

import copy
import os
import time
from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_checks.place import CheckContext, Row, row
from gpu_checks.subjects import (
    config_of,
    device_of,
    free,
    interleaved,
    settings_of,
    timm_model,
)
from swin_moe.backbone.model import build_model
from swin_moe.backbone.stage import compile_blocks
from swin_moe.config import ModelConfig
from swin_moe.random.keyed import sample_keys

CASES = (  # model, whose, whether in evaluation
    ("Swin-T", "ours", False),
    ("Swin-MoE-S", "ours", False),
    ("SwinV2-T", "ours", False),
    ("Swin-T", "timm", False),
    ("Swin-T", "ours", True),
)
CLOSE = 0.02  # of the loss in bf16


def compiled(place: CheckContext) -> Iterator[Row]:
    """Seconds to compile, milliseconds, graphs and the loss of each model."""
    device = device_of(place)
    backend = partial(torch.compile, backend="aot_eager") if place.rehearsal else torch.compile
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, patch.object(torch, "compile", backend):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing was compiled before
        for name, who, evaluated in CASES:
            try:
                yield from (_evaluation if evaluated else _training)(place, device, name, who)
            except Exception as error:
                yield row(f"{name} {who}", ok=False, error=f"{type(error).__name__}: {error}"[:400])
            torch._dynamo.reset()
            free()


def _pair(
    place: CheckContext, device: torch.device, name: str, who: str
) -> tuple[ModelConfig, nn.Module, nn.Module]:
    """A model, eager and compiled, with the same weights."""
    from models import compile_layers

    config = config_of(name, place)
    settings_of(who, place)
    models = [build_model(config) for _ in range(2)] if who == "ours" else [timm_model(name, config, place)]
    models = models if who == "ours" else [*models, copy.deepcopy(models[0])]
    eager, other = (model.to(device, torch.bfloat16).train() for model in models)
    (compile_blocks if who == "ours" else compile_layers)(other)
    return config, eager, other


def _training(place: CheckContext, device: torch.device, name: str, who: str) -> Iterator[Row]:
    """A training step of one model."""
    config, model, other = _pair(place, device, name, who)
    batch = 4 if place.rehearsal else 128
    images = torch.randn(batch, 3, *config.image_sides, device=device, dtype=torch.bfloat16)
    labels = torch.randint(0, config.num_classes, (batch,), device=device)
    keys = sample_keys(0, torch.arange(batch)).to(device)
    extra = (keys,) if who == "ours" else ()
    step = partial(_step, images, labels, extra)

    torch._dynamo.utils.counters.clear()
    place.synchronize()
    began = time.perf_counter()
    step(other)
    place.synchronize()
    seconds = time.perf_counter() - began
    stats = torch._dynamo.utils.counters
    graphs, breaks = stats["stats"]["unique_graphs"], sum(stats["graph_break"].values())
    reasons = [" ".join(reason.split())[:240] for reason, _ in stats["graph_break"].most_common(2)]
    found = interleaved(place, {"eager": partial(step, model), "compiled": partial(step, other)})
    figures: dict[str, object] = {"compile_s": seconds, "graphs": graphs, "graph_breaks": breaks}
    figures["break_reasons"] = reasons
    figures["graphs_later"] = stats["stats"]["unique_graphs"] - graphs  # a step must compile nothing more
    if isinstance(found["eager"], float) and isinstance(found["compiled"], float):
        figures |= {"eager_ms": found["eager"], "compiled_ms": found["compiled"]}
        figures["ratio"] = found["compiled"] / found["eager"]
    else:
        figures["error"] = str(found)
    for how, own in (("eager", model), ("compiled", other)):
        figures[f"{how}_peak_gb"] = place.peak_gb(partial(step, own))
    if who == "ours":  # timm draws its own random numbers
        losses = [float(_loss(own, images, labels, extra).detach()) for own in (model, other)]
        figures |= {"loss": losses[0], "loss_error": abs(losses[1] - losses[0]) / abs(losses[0])}
    ok = "error" not in figures and figures.get("loss_error", 0.0) <= CLOSE  # type: ignore[operator]
    yield row(f"{name} {who}", ok=ok, batch=batch, **figures)


def _evaluation(place: CheckContext, device: torch.device, name: str, who: str) -> Iterator[Row]:
    """A forward pass of one model in evaluation."""
    config, *both = _pair(place, device, name, who)
    batch = 4 if place.rehearsal else 128
    images = torch.randn(batch, 3, *config.image_sides, device=device, dtype=torch.bfloat16)
    eager, other = (model.eval() for model in both)

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(images)

    place.synchronize()
    began = time.perf_counter()
    forward(other)
    place.synchronize()
    seconds = time.perf_counter() - began
    found = interleaved(place, {"eager": partial(forward, eager), "compiled": partial(forward, other)})
    ok = all(isinstance(value, float) for value in found.values())
    numbers = {f"{how}_ms": value for how, value in found.items()}
    yield row(f"{name} {who} evaluation", ok=ok, batch=batch, compile_s=seconds, **numbers)


def _loss(model: nn.Module, images: Tensor, labels: Tensor, extra: tuple[Tensor, ...]) -> Tensor:
    output = model(images, *extra)
    return F.cross_entropy(getattr(output, "logits", output).float(), labels)


def _step(images: Tensor, labels: Tensor, extra: tuple[Tensor, ...], model: nn.Module) -> None:
    """Forward, loss and backward; the gradients are dropped."""
    _loss(model, images, labels, extra).backward()
    model.zero_grad()
