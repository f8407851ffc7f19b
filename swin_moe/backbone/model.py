"""The Swin Transformer as a classifier, and how models are built.

Legend: B images of h x w pixels, or clips of them; C channels of the last map.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from torch import Generator, Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import Mesh
from parallel.zero.init import partitioned
from swin_moe.backbone.backbone import Backbone, total_loss
from swin_moe.backbone.initialize import initialize
from swin_moe.config import ModelConfig
from swin_moe.errors import require
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import Dropout

M = TypeVar("M", bound=nn.Module)

HEAD_SITE = -5  # of the classifier's dropout; the sites of a backbone count from 0


class ModelOutput(NamedTuple):
    """Logits (B, num_classes), and the statistics of every MoE layer in order, by the layer's name.

    A tuple, because DeepSpeed hooks its backward to the tensors that it finds in tuples, lists and dicts; an
    output that it cannot look into trains with wrong gradients under accumulation.
    """

    logits: Tensor
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted auxiliary losses of all layers, summed: scalar."""
        return total_loss(self.moe, self.logits.device)


class ClipHead(nn.Linear):
    """The classifier of clips, whose weights start as those of the released models: a normal of std 0.01."""

    def fill_parameter(self, name: str, values: Tensor, generator: Generator) -> None:
        """Initial weights; the bias is 0."""
        if name == "bias":
            values.zero_()
        else:
            nn.init.normal_(values, std=0.01, generator=generator)


class SwinTransformer(Backbone):
    """A backbone and a linear classifier on the mean of its last map, after dropout.

    Args:
        config: what to build.
        placement: where the experts are; needed when the model has any.
    """

    def __init__(self, config: ModelConfig, placement: ExpertParallel | None = None) -> None:
        super().__init__(config, placement)
        self.head_dropout = Dropout(config.head_dropout, HEAD_SITE)
        classifier = ClipHead if config.frames else nn.Linear
        self.head = classifier(self.channels[-1], config.num_classes)

    def forward(
        self, images: Tensor, keys: Tensor | None = None, call: RoutingOverrides | None = None
    ) -> ModelOutput:
        """Classify images or clips; arguments as in forward_features."""
        keys = self.drawn_keys(images) if keys is None else keys
        features, statistics = self.forward_pooled(images, keys, call)
        return ModelOutput(logits=self.classify(features, keys), moe=statistics)

    def classify(self, features: Tensor, keys: Tensor) -> Tensor:
        """The logits (B, num_classes) of pooled features (B, C), whose dropout is drawn by keys (B,)."""
        logits: Tensor = self.head(self.head_dropout(features, keys))
        return logits


def build_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharded: bool = False,
    exchange: ExchangeOptions | None = None,
) -> SwinTransformer:
    """A model with initial weights that depend on (config, seed) alone.

    Args:
        config: what to build.
        seed: of the weights; every parameter, and every expert, draws from its own generator.
        mesh: the layout; without one all experts are here and no process group is needed.
        sharded: partition every parameter over its holders as it is made (deepspeed.zero.Init), for ZeRO
            stage 3 and a model that no rank can hold complete; every rank calls it together.
        exchange: how tokens and experts come together on the mesh.

    Raises:
        LayoutError: the experts do not divide over the mesh.
        ModelError: a sharded model without a mesh.
    """
    return construct(
        SwinTransformer, config, seed=seed, mesh=mesh, sharded=sharded, exchange=exchange or ExchangeOptions()
    )


def build_backbone(
    config: ModelConfig, *, norm: bool = True, seed: int = 0, mesh: Mesh | None = None
) -> Backbone:
    """A model without its classifier; its weights are those of `build_model` with this seed.

    Args:
        config: what to build.
        norm: see `Backbone`.
        seed: see `build_model`; so is `mesh`.
    """
    make = partial(Backbone, norm=norm)
    return construct(make, config, seed=seed, mesh=mesh, sharded=False, exchange=ExchangeOptions())


def construct(
    make: Callable[[ModelConfig, ExpertParallel | None], M],
    config: ModelConfig,
    *,
    seed: int,
    mesh: Mesh | None,
    sharded: bool,
    exchange: ExchangeOptions,
) -> M:
    """Make a module around the model of `config`, place its experts and fill it; see `build_model`."""
    require(mesh is not None or not sharded, "a sharded model needs a mesh: the ranks to partition it over")
    placement = None
    if config.moe is not None:
        experts = config.moe.num_experts
        placement = (
            ExpertParallel.over(mesh, experts, exchange) if mesh else ExpertParallel.on_one_rank(experts)
        )
    model = (
        partitioned(lambda: make(config, placement), mesh) if sharded and mesh else make(config, placement)
    )
    initialize(model, seed=seed, std=config.init_std, zero_branch_norms=config.norm == "post")
    return model
