"""MoBY's networks and loss against plain arithmetic in fp64."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe import ModelError
from swin_moe.backbone.flops import count_parameters
from swin_moe.heads.moby import (
    MLPHead,
    MoBY,
    build_moby,
    build_target,
    contrastive_loss,
    keys_of_view,
)
from swin_moe.heads.moby_config import MoBYConfig
from swin_moe.random.keyed import sample_keys
from tests.models import V2, add_noise, randn, small_moe, small_swin

HEADS = MoBYConfig(hidden_dim=24, out_dim=12, norm_group_images=4)
SMALL = small_swin(drop_path_rate=0.3)
KINDS = {
    "swin": SMALL,
    "v2": replace(SMALL, **V2),
    "moe": replace(SMALL, moe=small_moe(top_k=2, capacity_factor=1.0)),
}
KEYS = sample_keys(5, torch.arange(8))
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # of sums in another order


def make(kind: str) -> MoBY:
    return add_noise(build_moby(KINDS[kind], HEADS), 0.2)


def views_of(count: int) -> tuple[Tensor, Tensor]:
    first, second = (randn(count, 3, 32, 32, seed=seed) for seed in (1, 2))
    return first, second


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(randn(*shape, seed=seed, dtype=torch.float64), dim=-1)


def head_by_hand(head: MLPHead, x: Tensor) -> Tensor:
    """Group by group, from the parameters."""
    hidden = x @ head.fc1.weight.T + head.fc1.bias
    groups = []
    for group in hidden.split(HEADS.norm_group_images):
        centred = group - group.mean(0)
        groups.append(centred / (centred.square().mean(0) + 1e-5).sqrt())
    assert head.norm.weight is not None
    assert head.norm.bias is not None
    normed = torch.cat(groups) * head.norm.weight + head.norm.bias
    return normed.clamp(min=0) @ head.fc2.weight.T + head.fc2.bias


def test_parameters_of_the_published_heads() -> None:
    """768 x 4096 + 4096 + 2 x 4096 + 4096 x 256 + 256, and 256 in place of 768."""
    assert count_parameters(MLPHead(768, MoBYConfig())) == 4_206_848
    assert count_parameters(MLPHead(256, MoBYConfig())) == 2_109_696


@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_are_their_parts(kind: str) -> None:
    """Each view by a pass of its own, with draws of its own; the heads group by group."""
    model, views = make(kind).train(), views_of(8)
    output, pooled = model(views, KEYS), model(views, KEYS, None, True)
    for view, images in enumerate(views):
        features, _ = model.encoder.forward_pooled(images, keys_of_view(KEYS, view))
        torch.testing.assert_close(pooled.values[view], features)
        by_hand = head_by_hand(model.predictor, head_by_hand(model.projector, features))
        torch.testing.assert_close(output.values[view], by_hand, **CLOSE)
    swapped = model((views[1], views[0]), KEYS)
    assert not torch.allclose(swapped.values.flip(0), output.values)  # drop path differs from view to view
    if kind == "moe":
        (name, _), *_ = output.moe.items()
        passes = [
            model.encoder.forward_pooled(images, keys_of_view(KEYS, view))[1][name]
            for view, images in enumerate(views)
        ]
        assert torch.equal(output.moe[name].load, passes[0].load + passes[1].load)
        torch.testing.assert_close(output.moe[name].loss, (passes[0].loss + passes[1].loss) / 2)


def test_the_target_starts_at_the_online_network() -> None:
    """With one seed they have the same initial weights; the target has no predictor."""
    online, target = build_moby(SMALL, HEADS, seed=3), build_target(SMALL, HEADS, seed=3)
    shared = dict(target.named_parameters())
    assert {name for name in dict(online.named_parameters()) if not name.startswith("predictor.")} == {
        *shared
    }
    for name, parameter in shared.items():
        assert torch.equal(parameter, online.get_parameter(name))
    first, second = views_of(8)
    target.eval()
    torch.testing.assert_close(
        target((first, second), KEYS).values[0],
        head_by_hand(target.projector, target.encoder.forward_pooled(first, KEYS)[0]),
        **CLOSE,
    )


def test_groups_of_images_do_not_depend_on_the_micro_batch() -> None:
    """Two forward passes of 4 give the outputs and the gradients of one of 8."""
    model, views = make("swin").train(), views_of(8)
    whole = model(views, KEYS).values
    whole.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for start in (0, 4):
        rows = slice(start, start + 4)
        part = model(tuple(view[rows] for view in views), KEYS[rows]).values
        torch.testing.assert_close(part, whole[:, rows])
        part.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], **CLOSE)


def loss_by_hand(queries: Tensor, keys: Tensor, queues: Tensor, temperature: float) -> float:
    """q1 with k2 and the second queue, q2 with k1 and the first one: one sample at a time."""
    total = 0.0
    for mine, other in ((0, 1), (1, 0)):
        for query, key in zip(queries[mine], keys[other], strict=True):
            query = query / query.norm()
            positive = math.exp(float(query @ key) / temperature)
            negatives = sum(math.exp(float(query @ negative) / temperature) for negative in queues[other])
            total -= math.log(positive / (positive + negatives)) / len(queries[mine])
    return total


def test_the_loss_by_hand_and_what_gets_a_gradient() -> None:
    queries = randn(2, 6, 12, seed=1, dtype=torch.float64).requires_grad_()
    keys, queues = unit(2, 6, 12, seed=2), unit(2, 20, 12, seed=3)
    found = contrastive_loss(queries, keys, queues.float(), 0.2)
    assert found.loss.item() == pytest.approx(loss_by_hand(queries.detach(), keys, queues, 0.2), rel=1e-6)
    normal = F.normalize(queries, dim=-1).detach()
    assert found.positive.item() == pytest.approx((normal * keys.flip(0)).sum(-1).mean().item(), abs=1e-6)
    assert found.negative.item() == pytest.approx((normal @ queues.flip(0).mT).mean().item(), abs=1e-6)
    deviations = (normal - normal.mean(1, keepdim=True)).square().mean(1).sqrt()
    assert found.spread.item() == pytest.approx(deviations.mean().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found.loss, queries)
    step = 1e-3 * randn(2, 6, 12, seed=9, dtype=torch.float64)
    moved = [loss_by_hand(queries.detach() + sign * step, keys, queues, 0.2) for sign in (1, -1)]
    assert float((gradient * step).sum()) == pytest.approx((moved[0] - moved[1]) / 2, rel=1e-4)


def test_the_scale_of_the_loss() -> None:
    """Chance and collapse have 2 ln(1 + K); perfect positives 2 ln(1 + K e^-5 E[e^(5 x)])."""
    size, dim = 1024, 256
    queues = unit(2, size, dim, seed=1).float()
    chance = 2 * math.log(1 + size)
    random = contrastive_loss(randn(2, 64, dim, seed=2), unit(2, 64, dim, seed=3), queues, 0.2)
    assert random.loss.item() == pytest.approx(chance, abs=0.15)
    assert random.spread.item() == pytest.approx(1 / 16, rel=0.02)
    same = F.normalize(torch.ones(2, size, dim), dim=-1)
    collapsed = contrastive_loss(same[:, :64], same[:, :64], same, 0.2)
    assert collapsed.loss.item() == pytest.approx(chance, rel=1e-5)
    assert collapsed.spread.item() == pytest.approx(0.0, abs=1e-6)
    keys = unit(2, 64, dim, seed=4).float()
    perfect = contrastive_loss(keys.flip(0), keys, queues, 0.2)
    assert perfect.loss.item() == pytest.approx(2 * math.log(1 + size * math.exp(-5) * 1.05), abs=0.05)


def test_half_precision_is_contrasted_in_fp32() -> None:
    queries, keys, queues = randn(2, 8, 12, seed=1), unit(2, 8, 12, seed=2).float(), unit(2, 32, 12, seed=3)
    whole = contrastive_loss(queries.bfloat16().float(), keys, queues.float(), 0.2)
    half = contrastive_loss(queries.bfloat16(), keys, queues.float(), 0.2)
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.loss, whole.loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 0}, r"moby.head.hidden_dim \(0\) must be at least 1"),
        ({"norm_group_images": 1}, r"moby.head.norm_group_images \(1\) must be at least 2"),
    ],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MoBYConfig(**options)
