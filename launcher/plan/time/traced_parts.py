"""The pieces of a model, each traced by itself: patches, blocks by kind, one expert a stage, and heads.

Legend: B images or clips, L tokens of each in a stage, C channels; `sides` of a map in tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from launcher.plan.base.trace import Trace, trace
from launcher.tasks.spec import HeadPart
from parallel.experts.placement import ExpertParallel, ExpertSlice
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.group_batch_norm import in_one_group
from swin_moe.backbone.model import SwinTransformer
from swin_moe.backbone.relation_layer import LocalRelation
from swin_moe.config import ModelConfig
from swin_moe.moe.dispatch import DispatchPlan, SoftDispatchPlan, make_plan
from swin_moe.moe.experts import ExpertMLP
from swin_moe.moe.layer import MoELayer
from swin_moe.moe.routers.base import RoutingRequest, SoftRouting

Heads = Callable[[Backbone], Sequence[HeadPart]]  # of a task, on a backbone

BIAS = "position bias"  # once a batch of any size: no part of a model's published FLOPs


class TracedPart(NamedTuple):
    """A piece of the model, as often as it is there."""

    stage: str
    name: str
    trace: Trace  # by images
    number: int  # of such pieces
    in_block: bool  # what activation checkpointing computes twice


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of all MoE layers of a stage."""

    stage: str
    layers: int
    length: int  # tokens of an image
    dim: int
    hidden: int
    parameters: int  # of one whole expert
    one: Trace  # an expert's work, by rows


def patches(swin: Backbone) -> TracedPart:
    """Patch embedding."""
    shape = swin.config.in_chans, *swin.config.input_sides

    _take_priors(swin.patch_embed)

    def run(batch: int) -> Tensor:
        in_one_group(swin.patch_embed, batch)  # an LR-Net's stem has batch norms
        tokens: Tensor = swin.patch_embed(torch.empty(batch, *shape))
        return tokens

    traced = trace(swin.patch_embed, run)
    return TracedPart("patches", "patches", traced, 1, False)


def stage_parts(swin: Backbone, number: int) -> list[TracedPart]:
    """Merging, and the blocks: equal ones are traced once."""
    stage, name = swin.layers[number], f"stage {number}"
    parts = []
    if stage.merge is not None:
        merge = stage.merge
        assert isinstance(merge, nn.Module)
        parts.append(
            TracedPart(name, "merging", trace(merge, lambda b: merge(_map(swin, number - 1, b))), 1, False)
        )
    if swin.config.lr_net is not None:
        return _bottlenecks(swin, number)
    kinds: dict[tuple[object, ...], list[SwinBlock]] = {}
    for block in stage.blocks:  # type: ignore[union-attr]
        assert isinstance(block, SwinBlock)
        key = (
            isinstance(block.mlp, MoELayer),
            block.mask is None,
            block.grid.shifted,
            block.main_norm is None,
            block.drop_path1.rate > 0,
        )
        kinds.setdefault(key, []).append(block)
    for blocks in kinds.values():
        traces = _block(swin, number, blocks[0])
        parts += [TracedPart(name, kind, of, len(blocks), True) for kind, of in traces.items()]
    return parts


def _bottlenecks(swin: Backbone, number: int) -> list[TracedPart]:
    """The blocks of a stage of an LR-Net: the first one, and the others, which are alike."""
    lr_net, blocks = swin.config.lr_net, list(swin.layers[number].blocks)  # type: ignore[arg-type]
    assert lr_net is not None

    def first(batch: int) -> Tensor:
        stem = torch.empty(batch, *swin.config.stage_resolution(0), lr_net.stem_width, requires_grad=True)
        return _bottleneck(blocks[0], _map(swin, number - 1, batch) if number else stem)

    def other(batch: int) -> Tensor:
        return _bottleneck(blocks[-1], _map(swin, number, batch))

    name, others = f"stage {number}", len(blocks) - 1
    parts = [TracedPart(name, BIAS, prior, len(blocks), True) for prior in _take_priors(blocks[0])]
    parts.append(TracedPart(name, "first bottleneck", trace(blocks[0], first), 1, True))
    if others:
        _take_priors(blocks[-1])
        parts.append(TracedPart(name, "bottlenecks", trace(blocks[-1], other), others, True))
    return parts


def _take_priors(piece: nn.Module) -> list[Trace]:
    """The priors of the local relations of a piece; constants take their places."""
    traces = []
    for layer in [one for one in piece.modules() if isinstance(one, LocalRelation)]:
        if (prior := layer.prior) is not None:
            traces.append(trace(prior, lambda b, prior=prior: prior()))  # type: ignore[misc]
            layer.prior = _Given(prior())  # type: ignore[assignment]
    return traces


def _bottleneck(block: nn.Module, x: Tensor) -> Tensor:
    """The result of a block, whose batch norms take all images for a group."""
    in_one_group(block, len(x))
    y: Tensor = block(x, torch.empty(len(x), dtype=torch.int64))[0]
    return y


def _block(swin: Backbone, number: int, block: SwinBlock) -> dict[str, Trace]:
    """The pieces of a block by name; experts come by themselves."""
    traces: dict[str, Trace] = {}
    mlp, mixer = block.mlp, block.attention
    length = swin.config.stage_tokens(number)
    shape = length, swin.config.stage_dim(number)

    def tokens(batch: int) -> tuple[Tensor, Tensor]:
        keys = torch.empty(batch, dtype=torch.int64)
        return torch.empty(batch, *shape, requires_grad=True), keys

    if isinstance(mlp, MoELayer):
        traces["router"] = trace(mlp, lambda b: _routed(mlp, *tokens(b)))
        if mlp.shared is not None:
            shared = mlp.shared
            traces["shared expert"] = trace(shared, lambda b: shared(*tokens(b))[0])
    else:
        traces["mlp"] = trace(mlp, lambda b: mlp(*tokens(b))[0])
    if hasattr(mixer, "position_bias"):
        bias = mixer.position_bias
        assert isinstance(bias, nn.Module)
        if swin.training:  # evaluation keeps it
            traces[BIAS] = trace(bias, lambda b: bias())
        mixer.position_bias = _Given(bias())
    for prior in _take_priors(block):
        traces[BIAS] = prior
    block.mlp = _Same()  # type: ignore[assignment]
    if block.options.masks.by_pattern:  # made at the first call, and kept
        block.options.masks.mask(swin.config.stage_resolution(number), torch.empty(0).device)
    traces["attention"] = trace(
        block, lambda b: block(_map(swin, number, b), torch.empty(b, dtype=torch.int64))[0]
    )
    return traces


def _routed(layer: MoELayer, x: Tensor, keys: Tensor) -> Tensor:
    """All of an MoE layer but its experts and the exchange: each image is a routing group here."""
    images, length, channels = x.shape
    moe, tokens = layer.config, x.reshape(-1, channels)
    request = RoutingRequest(
        groups=images, length=length, top_k=moe.top_k, factor=moe.capacity_factor, slots=1
    )
    # `route`: fp32 it is here, and autocast, which the router turns off, knows no meta device
    routing = layer.router.route(tokens, keys[:, None].expand(-1, length).reshape(-1), request)
    if isinstance(routing, SoftRouting):
        plan: DispatchPlan | SoftDispatchPlan = routing.plan(groups=images, slots=1, padded=False)
    else:
        choices = routing.expert_index.shape[1]
        made = make_plan(
            routing.gates,
            routing.expert_index,
            routing.priority,
            slots=1,
            num_experts=moe.num_experts,
            padded=True,
        )
        order = torch.empty(len(tokens) * choices, dtype=torch.int64)
        plan = replace(made, order=order, row=order.view(-1, choices), static_count=None, complete=True)
    y = plan.combine(plan.dispatch(tokens))
    return y.sum() + sum(routing.losses.values(), y.new_zeros(()))


def stage_experts(swin: Backbone, number: int) -> Experts | None:
    """One expert of a stage, traced by its rows."""
    model = swin.config
    assert isinstance(model, ModelConfig)
    if model.moe is None or not (layers := len(set(model.moe.blocks[number]))):
        return None
    dim = model.stage_dim(number)
    hidden = int(dim * model.mlp_ratio)
    one = ExpertMLP(
        dim,
        hidden,
        ExpertParallel.on_one_rank(1),
        activation=model.moe.expert_activation,
        dropout=model.moe.expert_dropout,
        fc2_bias=model.mlp_fc2_bias,
        recompute=model.moe.recompute_activation,
        site=0,
    ).train(swin.training)

    def run(rows: int) -> Tensor:
        x, keys = torch.empty(rows, dim, requires_grad=True), torch.empty(rows, dtype=torch.int64)
        return one(one.weights(), x, [rows], keys, ExpertSlice())

    return Experts(
        stage=f"stage {number}",
        layers=layers,
        length=model.stage_tokens(number),
        dim=dim,
        hidden=hidden,
        parameters=sum(p.numel() for p in one.parameters()),
        one=trace(one, run),
    )


def heads(swin: Backbone, after: Heads | None) -> list[TracedPart]:
    """The parts after the backbone: a task's, or the last norm and the classifier."""
    parts = [_classifier(swin)] if after is None else after(swin)
    return [_head(swin, part) for part in parts]


def _head(swin: Backbone, part: HeadPart) -> TracedPart:
    traced = trace(part.module, lambda b: part.run(_maps(swin, b)))
    return TracedPart("head", part.name, traced, 1, False)


def _classifier(swin: Backbone) -> HeadPart:
    """The last norm and the classifier."""
    assert isinstance(swin, SwinTransformer)

    def run(maps: list[Tensor]) -> Tensor:
        keys = torch.empty(len(maps[-1]), dtype=torch.int64)
        return swin.classify(swin.pool(maps[-1]), keys)

    return HeadPart("head", nn.ModuleList([swin.norm, swin.head]), run)


def _maps(swin: Backbone, batch: int) -> list[Tensor]:
    """The map of each stage: (B, *sides, C)."""
    return [_map(swin, number, batch) for number in range(len(swin.config.depths))]


def _map(swin: Backbone, number: int, batch: int) -> Tensor:
    """The map of a stage: (B, *sides, C)."""
    shape = *swin.config.stage_resolution(number), swin.config.stage_dim(number)
    return torch.empty(batch, *shape, requires_grad=True)


class _Given(nn.Module):
    """A position bias, or a prior of local relations, that was computed before."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty_like(bias))

    def forward(self) -> Tensor:
        """The bias (h, n, n)."""
        return self.bias


class _Same(nn.Module):
    """In the place of an MLP that is traced by itself."""

    def forward(self, x: Tensor, keys: Tensor, call: object = None) -> tuple[Tensor, None]:
        """What it gets."""
        return x, None
