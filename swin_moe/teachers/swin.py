"""A model of ours as a teacher: a run, a checkpoint, or weights in any format of `swin_moe.load_weights`.

Legend: B images of h x w pixels, H x W tokens and C channels of the last map, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.model import ModelOutput, SwinTransformer, construct
from swin_moe.config import ModelConfig
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.teachers.source import TeacherSourceError, TeacherSpec, Wanted
from swin_moe.weights.errors import NoClassifierError
from swin_moe.weights.input_spec import InputSpec
from swin_moe.weights.load import LoadOptions, load_weights, plan_load
from swin_moe.weights.parts import Part

PARTS: dict[Wanted, tuple[Part, ...]] = {"map": ("backbone",), "logits": ("backbone", "head")}
MAKE: dict[Wanted, Callable[[ModelConfig, ExpertParallel | None], Backbone]] = {
    "map": Backbone,
    "logits": SwinTransformer,
}


class SwinTeacher(nn.Module):
    """A backbone, or a classifier, that drops no token of an expert.

    Args:
        model: whose experts are all here.
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model
        moe = model.config.moe
        is_exact = moe is None or moe.router == "soft"  # soft routing has no capacity
        self._call = RoutingOverrides() if is_exact else RoutingOverrides(capacity_factor=0.0)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> the last map (B, H, W, C), normalised; of a classifier its logits (B, K)."""
        if isinstance(self.model, SwinTransformer):
            output: ModelOutput = self.model(images, call=self._call)
            return output.logits
        features = self.model.forward_features(images, call=self._call)
        normalised: Tensor = self.model.norm(features.maps[-1])
        return normalised


@dataclass(frozen=True, kw_only=True)
class SwinSource:
    """Weights of ours, or that ours can be loaded from."""

    path: Path
    config: ModelConfig  # of the weights, with the size of the teacher's images
    wanted: Wanted
    inputs: InputSpec
    ema: bool = False  # the moving average of the weights

    def __post_init__(self) -> None:
        if self.config.frames:
            raise TeacherSourceError(
                f"{self.path}: a model of clips (model.frames={self.config.frames}) cannot teach from images"
            )
        moe = self.config.moe
        if moe is not None and moe.router == "expert_choice":
            raise TeacherSourceError(
                f"{self.path}: with model.moe.router=expert_choice a teacher's output depends on the other "
                "images of the batch; take a teacher with another router"
            )

    @property
    def spec(self) -> TeacherSpec:
        """By the configuration."""
        last = len(self.config.depths) - 1
        return TeacherSpec(
            sides=self.config.image_sides,
            grid=self.config.stage_resolution(last),
            width=self.config.stage_dim(last),
            classes=self.config.num_classes,
            class_names=self.inputs.classes,
            mean=self.inputs.mean,
            std=self.inputs.std,
        )

    def check(self) -> None:
        """Fit the weights to a model of shapes alone: they are mapped from the file, not kept."""
        options = LoadOptions(parts=PARTS[self.wanted], average="ema" if self.ema else None)
        try:
            plan_load(construct_on_meta(MAKE[self.wanted], self._native), self.path, options)
        except NoClassifierError as error:
            raise TeacherSourceError(
                f"{self.path} has no classifier: name the weights of one with {self.config.num_classes} "
                "classes, or set task=distill, which takes the map of a teacher"
            ) from error

    def on_meta(self) -> nn.Module:
        """Of shapes alone."""
        return SwinTeacher(construct_on_meta(MAKE[self.wanted], self._native))

    def load(self) -> nn.Module:
        """With its weights; `WeightsError` says what is wrong with them."""
        model = construct(
            MAKE[self.wanted], self._native, seed=0, mesh=None, sharded=False, exchange=ExchangeOptions()
        )
        load_weights(model, self.path, parts=PARTS[self.wanted], ema=self.ema)
        return SwinTeacher(model)

    @property
    def _native(self) -> ModelConfig:
        return self.config.with_native_backend()
