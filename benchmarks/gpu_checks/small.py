"""A small Swin-MoE with every source of randomness on, under our engine, on any device."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.experts.names import shape_of
from parallel.ranks.mesh import ParallelDims, build_mesh
from parallel.zero.engine import Engine
from parallel.zero.options import EngineOptions, Precision, ZeroStage
from swin_moe import ModelConfig, MoEConfig
from swin_moe.backbone.model import build_model
from swin_moe.heads.classification import classification_loss
from swin_moe.random.keyed import sample_keys

CLASSES, IMAGE, EXPERTS = 10, 32, 8
CLIP_NORM, LEARNING_RATE, LABEL_SMOOTHING = 1.0, 1e-3, 0.1
EPS = 1e-5  # of Adam: rounding of a gradient that is all but zero must not decide the sign of an update


@dataclass(frozen=True, kw_only=True)
class SmallCase:
    """An engine: its stage and precision, and the images of a step, in two micro-batches."""

    stage: ZeroStage
    precision: Precision
    offload: bool = False
    images: int = 16

    def __str__(self) -> str:
        return f"ZeRO {self.stage}, {self.precision}{', offloaded' if self.offload else ''}"


def model_config() -> ModelConfig:
    """Heads of 32 channels and windows of 16 tokens, as a GPU's kernels want them; two layers of experts."""
    moe = MoEConfig(
        blocks=((1,), (1,)),
        num_experts=EXPERTS,
        top_k=2,
        capacity_factor=1.25,
        routing_group_images=4,
        gate_noise=1.0,
        expert_dropout=0.1,
    )
    return ModelConfig(
        image_size=IMAGE,
        num_classes=CLASSES,
        embed_dim=64,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        position_bias="log_cpb",
        drop_rate=0.1,
        drop_path_rate=0.2,
        moe=moe,
    )


def batch(step: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and keys of one step, on the host: a function of the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    pixels = torch.randn(images, 3, IMAGE, IMAGE, generator=generator) + labels.view(-1, 1, 1, 1) / CLASSES
    return pixels, labels, sample_keys(5, torch.arange(step * images, (step + 1) * images))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights decay; biases and norms do not."""
    found: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        found[not (name.endswith("bias") or len(shape_of(parameter)) == 1)].append(parameter)
    return [
        {"name": f"decay {decays}", "params": found[decays], "weight_decay": 0.05 * decays, "eps": EPS}
        for decays in (True, False)
    ]


@dataclass(kw_only=True)
class Run:
    """An engine and where it stands in its stream of images."""

    case: SmallCase
    device: torch.device
    engine: Engine
    next_step: int = 0

    @staticmethod
    def start(case: SmallCase, device: torch.device) -> "Run":
        """Build model and engine as launcher/training/trainer.py does; the process group is there already."""
        mesh = build_mesh(ParallelDims(world_size=1))
        model = build_model(model_config(), seed=3, mesh=mesh, sharded=case.stage == 3).to(device)
        options = EngineOptions(
            zero_stage=case.stage,
            precision=case.precision,
            offload_optimizer=case.offload,
            max_grad_norm=CLIP_NORM,
            micro_batch_size=case.images // 2,
            grad_accum_steps=2,
        )
        engine = Engine(model, groups(model), mesh, options)
        engine.train()
        return Run(case=case, device=device, engine=engine)

    def train(self, steps: int) -> list[float]:
        """Take optimizer steps; the mean loss of each."""
        losses = []
        for step in range(self.next_step, self.next_step + steps):
            images, labels, keys = batch(step, self.case.images)
            parts = []
            for rows in torch.arange(self.case.images).chunk(2):
                parts.append(self._micro_step(images[rows], labels[rows], keys[rows]))
            losses.append(sum(map(float, parts)) / len(parts))
        self.next_step += steps
        return losses

    def _micro_step(self, images: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        output = self.engine(images.to(self.device), keys.to(self.device))
        loss = classification_loss(output.logits, labels.to(self.device), LABEL_SMOOTHING) + output.aux_loss
        self.engine.backward(loss)
        self.engine.step(LEARNING_RATE)
        return loss.detach()
