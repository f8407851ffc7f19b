"""Artifacts of small models for the tests."""

from pathlib import Path
from typing import Any

import torch

from launcher.deploy.build import Request, Runtime, deploy
from launcher.deploy.data import Places
from launcher.deploy.options import DeployOptions, TargetName
from launcher.deploy.verify import in_new_process, in_this_process
from swin_moe.backbone.model import build_model
from swin_moe.config import ModelConfig
from swin_moe.weights.export import save_weights
from swin_moe.weights.input_spec import InputSpec
from tests.models import randomize_by_fan_in
from tests.recorded import RUNS, SHARDS

RUN = RUNS / "swin_moe_ep2_stage1"
PLACES = Places(val=str(SHARDS / "val"), train=str(SHARDS / "train"))
GREY = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), eval_crop=1.0)


def make(
    out: Path,
    source: Path = RUN,
    target: TargetName = "safetensors",
    *,
    runtime: Runtime = in_new_process,
    places: Places = PLACES,
    **options: Any,
) -> Path:
    """Deploy a model to `out`."""
    request = Request(
        source=str(source), options=DeployOptions(target=target, out=out, **options), places=places
    )
    return deploy(request, say=lambda text: None, runtime=runtime)


def make_here(out: Path, source: Path, target: TargetName = "safetensors", **options: Any) -> Path:
    """The same, checked in this process, which is quicker."""
    return make(out, source, target, runtime=in_this_process, **options)


def weights(path: Path, config: ModelConfig) -> Path:
    """A file with weights of ours, every one drawn, so that logits differ between images."""
    model = randomize_by_fan_in(build_model(config))
    return save_weights(model, path, "safetensors", GREY)


def pixels(number: int, config: ModelConfig) -> torch.Tensor:
    """Normalized images (number, channels, h, w)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(number, config.in_chans, *config.image_sides, generator=generator)
