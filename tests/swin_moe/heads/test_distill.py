"""Feature distillation: the loss by hand, whitening, grids, and what is trained."""

import math

import pytest
import torch
from torch import Tensor

from swin_moe.errors import ModelError
from swin_moe.heads.distill import (
    Distiller,
    TokenProjector,
    build_distiller,
    resized_map,
    smooth_l1,
    soft_target_loss,
    whitened,
)
from swin_moe.heads.distill_config import DistillConfig
from swin_moe.random.keyed import sample_keys
from tests.models import images_of, randn, small_lr_net, small_moe, small_swin

KEYS = sample_keys(0, torch.arange(2))


def distiller(
    config: DistillConfig, *, width: int = 6, grid: tuple[int, int] = (4, 4), **model: object
) -> Distiller:
    """A student of 8 x 8 tokens of 8 channels, then 4 x 4 of 16, without drop path."""
    return build_distiller(small_swin(drop_path_rate=0.0, **model), config, width, grid)


def test_smooth_l1_by_hand() -> None:
    """beta 2: x^2 / 4 below 2, |x| - 1 from there. (0 + 1/4 + 1 + 2) / 4 and (4 + 0 + 0 + 0) / 4."""
    prediction = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-5.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    loss = smooth_l1(prediction, torch.zeros(2, 1, 2, 2), 2.0)
    assert loss.tolist() == pytest.approx([3.25 / 4, 1.0])


def test_a_zero_prediction_of_a_whitened_gaussian_costs_0_247() -> None:
    """E of the loss of N(0, 1): the integral of x^2 / 4 within 2 and of |x| - 1 beyond.

    The integral of x^2 within 2 is erf(sqrt(2)) - 4 phi(2) = 0.73854, of |x| - 1 beyond 2 phi(2) - 2 Q(2) =
    0.06248: 0.18463 + 0.06248 = 0.24711.
    """
    phi = math.exp(-2) / math.sqrt(2 * math.pi)
    expected = (math.erf(math.sqrt(2)) - 4 * phi) / 4 + 2 * phi - math.erfc(math.sqrt(2))
    assert expected == pytest.approx(0.24711, abs=1e-5)
    target = whitened(7 * randn(4, 8, 8, 768) - 3)
    loss = smooth_l1(torch.zeros_like(target), target, 2.0)
    assert loss.mean().item() == pytest.approx(expected, abs=1e-3)


def test_whitening_by_hand() -> None:
    """Channels 1, 3: mean 2, biased variance 1, so -1 and 1 (over the square root of 1 + 1e-5)."""
    found = whitened(torch.tensor([[1.0, 3.0]]))
    assert found[0].tolist() == pytest.approx([-1 / math.sqrt(1 + 1e-5), 1 / math.sqrt(1 + 1e-5)])


@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 0.0), (1.0, 40.0), (0.03, -2.0)])
def test_scale_and_shift_of_the_teacher_do_not_matter(scale: float, shift: float) -> None:
    """Of a target far above the epsilon of the variance, to 1e-6."""
    model, images = distiller(DistillConfig()).double(), images_of(small_swin()).double()
    target = 1000 * randn(2, 4, 4, 6, seed=3, dtype=torch.float64)
    wanted = model(images, KEYS, target).loss.item()
    found = model(images, KEYS, scale * target + shift).loss.item()
    assert found == pytest.approx(wanted, rel=1e-6)


def test_without_whitening_a_large_teacher_rules_the_loss() -> None:
    """The control of the test above: x 1000 is beyond beta nearly everywhere, and the loss grows with it."""
    model, images = distiller(DistillConfig(whiten=False)), images_of(small_swin())
    target = randn(2, 4, 4, 6, seed=3)
    plain, large = (model(images, KEYS, factor * target).loss.item() for factor in (1.0, 1000.0))
    assert large > 700
    assert plain < 0.5


def test_the_output_is_the_loss_of_the_projected_map() -> None:
    """By the parts: the backbone, its norm, the layer of each token, layer norm of the target, the loss."""
    model, images = distiller(DistillConfig()), images_of(small_swin())
    target = randn(2, 4, 4, 6, seed=3)
    output = model(images, KEYS, target)
    tokens = model.encoder.norm(model.encoder.forward_features(images, KEYS).maps[-1])
    prediction = tokens @ model.projector.proj.weight.T + model.projector.proj.bias
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, correction=0, keepdim=True)
    wanted = (target - mean) / (variance + 1e-5).sqrt()
    distance = (prediction - wanted).abs()
    losses = torch.where(distance < 2, distance**2 / 4, distance - 1).mean((1, 2, 3))
    torch.testing.assert_close(output.error, losses)
    torch.testing.assert_close(output.loss, losses.mean())
    cosine = (prediction * wanted).sum(-1) / (prediction.norm(dim=-1) * wanted.norm(dim=-1))
    torch.testing.assert_close(output.cosine, cosine.mean((1, 2)))
    deviation = (wanted - wanted.mean((1, 2), keepdim=True)).square().mean((1, 2)).sqrt().mean(1)
    torch.testing.assert_close(output.spread, deviation)
    torch.testing.assert_close(output.features, tokens.mean((1, 2)))


@pytest.mark.parametrize(("stage", "side"), [(None, 4), (0, 8)])
def test_every_map_of_an_lr_net_gets_a_norm(stage: int | None, side: int) -> None:
    """A layer norm of each token before the layer, as the backbone has none; the stages behind stay."""
    config = small_lr_net()
    model = build_distiller(config, DistillConfig(stage=stage), 6, (side, side))
    images, target = images_of(config), randn(2, side, side, 6, seed=3)
    output = model(images, KEYS, target)
    tokens = model.encoder.forward_features(images, KEYS).maps[-1 if stage is None else stage]
    centred = tokens - tokens.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    prediction = normalised @ model.projector.proj.weight.T + model.projector.proj.bias
    torch.testing.assert_close(output.error, smooth_l1(prediction, whitened(target), 2.0))
    torch.testing.assert_close(output.features, tokens.mean((1, 2)))
    output.loss.backward()
    for name, parameter in model.named_parameters():
        is_left = stage == 0 and name.startswith("encoder.layers.1.")
        assert parameter.requires_grad is not is_left, name
        assert (parameter.grad is None) is is_left, name


def test_a_token_predicts_the_tokens_at_its_place() -> None:
    """Channel c of row i, column j of the 2 x 2 tokens is output (2 i + j) C' + c of the layer."""
    projector = TokenProjector(3, 5, factor=2)
    x = randn(1, 2, 3, 3)
    found, flat = projector(x), projector.proj(x)
    assert found.shape == (1, 4, 6, 5)
    for row in range(4):
        for column in range(6):
            first = (2 * (row % 2) + column % 2) * 5
            wanted = flat[0, row // 2, column // 2, first : first + 5]
            assert torch.equal(found[0, row, column], wanted)


def test_bilinear_halving_averages() -> None:
    """Half of the side: weights 1, 3, 3, 1 along an axis, those inside of the map, of a sum of 1."""
    target = randn(1, 4, 4, 2)
    weights = torch.tensor([[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]]) / 7
    wanted = torch.einsum("ri,sj,bijc->brsc", weights, weights, target)
    torch.testing.assert_close(resized_map(target, (2, 2)), wanted)
    assert torch.equal(resized_map(target, (4, 4)), target)


@pytest.mark.parametrize("resize", ["pixel_shuffle", "bilinear"])
def test_other_grids(resize: str) -> None:
    model = distiller(DistillConfig(resize=resize), grid=(8, 8))  # type: ignore[arg-type]
    output = model(images_of(small_swin()), KEYS, randn(2, 8, 8, 6, seed=3))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.projector.proj.weight.shape[0] == (24 if resize == "pixel_shuffle" else 6)


def test_an_earlier_stage_leaves_the_later_ones_alone() -> None:
    model = distiller(DistillConfig(stage=0), grid=(8, 8))
    called: list[str] = []
    model.encoder.layers[1].register_forward_hook(lambda *_: called.append("layer"))
    model(images_of(small_swin()), KEYS, randn(2, 8, 8, 6, seed=3)).loss.backward()
    assert called == []
    for name, parameter in model.named_parameters():
        is_left = name.startswith(("encoder.layers.1.", "encoder.norm."))
        assert parameter.requires_grad is not is_left, name
        assert (parameter.grad is None) is is_left, name


def test_grids_that_do_not_go_together() -> None:
    with pytest.raises(
        ModelError, match=r"4 x 4 tokens, and the teacher's 8 x 8; set distill.resize to pixel"
    ):
        distiller(DistillConfig(), grid=(8, 8))
    with pytest.raises(ModelError, match="multiple of the student's tokens: .*4 x 4 .*6 x 6"):
        distiller(DistillConfig(resize="pixel_shuffle"), grid=(6, 6))
    with pytest.raises(ModelError, match=r"distill.stage \(2\) must be at most 1"):
        distiller(DistillConfig(stage=2))
    with pytest.raises(ModelError, match=r"distill.beta \(0.0\) must be at least"):
        DistillConfig(beta=0.0)


def test_experts_are_balanced() -> None:
    model = distiller(DistillConfig(), moe=small_moe(expert_dropout=0.0)).train()
    output = model(images_of(small_swin()), KEYS, randn(2, 4, 4, 6, seed=3))
    assert output.aux_loss > 0
    (output.loss + output.aux_loss).backward()
    routers = [p for name, p in model.named_parameters() if ".router." in name and p.requires_grad]
    assert len(routers) == 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)


def test_soft_targets_by_hand() -> None:
    """T = 2: KL((.5, .5) || softmax(ln 9 / 2, 0) = (.75, .25)) = .5 ln(2/3) + .5 ln 2 = .14384; times 4."""
    logits = torch.tensor([[math.log(9.0), 0.0]])
    loss = soft_target_loss(logits, torch.zeros(1, 2), 2.0)
    assert loss.item() == pytest.approx(4 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2)), rel=1e-6)


def test_soft_targets_at_a_high_temperature_are_a_squared_distance() -> None:
    """Hinton et al. 2015, section 2.1: of centred logits, the gradient nears (student - teacher) / K."""

    def centred(seed: int) -> Tensor:
        x = randn(3, 5, seed=seed, dtype=torch.float64)
        return x - x.mean(1, keepdim=True)

    logits, teacher = centred(1).requires_grad_(), centred(2)
    (3 * soft_target_loss(logits, teacher, 1000.0).double()).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (logits - teacher).detach() / 5, rtol=5e-3, atol=5e-3)
