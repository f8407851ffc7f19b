"""The MoE layer against plain loops over groups, tokens, choices and experts (plain_moe.py).

Every router, capacity, order and number of choices; then evaluation, noise and dropout, and the images of a
forward pass. What goes wrong on purpose is in test_moe_edges.py.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from swin_moe.errors import ModelError
from swin_moe.moe.layer import MoELayer, MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import sample_keys
from tests.models import moe_layer
from tests.pairwise import pairwise_of
from tests.swin_moe.moe.layers import (
    GROUP,
    IMAGES,
    LENGTH,
    TOP_K_ROUTERS,
    compare,
    gradients,
    keys_of,
    make_images,
    make_layer,
)
from tests.swin_moe.moe.plain_moe import Asked, Reference, expert_mlp, reference


def cases() -> list[dict[str, object]]:
    """Every router with every capacity, order and number of choices that it has."""
    factors, numbers = (0.0, 0.5, 1.25), (1, 2, 4)
    found: list[dict[str, object]] = [{"router": "soft", "slots_per_expert": slots} for slots in (1, 3)]
    for router, factor, prioritized in itertools.product(TOP_K_ROUTERS, factors, (False, True)):
        for top_k, normalize in ((1, False), (2, False), (2, True), (3, True), (4, False)):
            options = {"router": router, "capacity_factor": factor, "top_k": top_k}
            found.append(options | {"batch_prioritized": prioritized, "normalize_gates": normalize})
    for factor, top_k in itertools.product(factors, numbers):
        found += [{"router": name, "capacity_factor": factor, "top_k": top_k} for name in ("hash", "random")]
    for factor, top_k in itertools.product((0.5, 1.25), numbers):
        evaluation = {"eval_capacity_factor": factor}
        found.append({"router": "expert_choice", "capacity_factor": factor, "top_k": top_k} | evaluation)
    found += [{"router": name, "capacity_factor": -0.5, "top_k": 2} for name in ("linear", "hash")]
    return found


CASES = cases()


def name_of(options: dict[str, object]) -> str:
    return "-".join(str(value) for value in options.values())


def check_drops(expected: Reference, options: dict[str, object]) -> None:
    """10 tokens a group, 4 experts: ceil(10 / 4) = 3; factor .5 leaves int(1.5) = 1 slot a choice and expert.

    So at least 10 - 4 = 6 of 10 assignments a choice are dropped, in each of 3 groups.
    """
    if options["router"] in ("soft", "expert_choice"):
        return
    factor, top_k = float(str(options["capacity_factor"])), int(str(options["top_k"]))
    assert sum(expected.load) == IMAGES * LENGTH * top_k
    if factor == 0:
        assert expected.dropped == 0
    if abs(factor) == 0.5:
        assert expected.dropped >= 3 * 6 * top_k


@pytest.mark.parametrize("options", pairwise_of(CASES), ids=name_of)
def test_training_equals_plain_loops_in_fp64(options: dict[str, object]) -> None:
    factor = float(str(options.get("capacity_factor", 0.0)))
    expected = compare(
        make_layer(**options), make_images(), factor=factor, group_images=GROUP, tolerance=1e-10
    )
    check_drops(expected, options)


@pytest.mark.parametrize("options", pairwise_of(CASES[::3]), ids=name_of)
def test_training_equals_plain_loops_in_fp32(options: dict[str, object]) -> None:
    factor, layer = (
        float(str(options.get("capacity_factor", 0.0))),
        make_layer(dtype=torch.float32, **options),
    )
    expected = compare(layer, make_images(torch.float32), factor=factor, group_images=GROUP, tolerance=1e-5)
    check_drops(expected, options)


@pytest.mark.parametrize("options", pairwise_of(CASES[2::3]), ids=name_of)
def test_the_reference_backend_agrees(options: dict[str, object]) -> None:
    """A plain loop as backend, with noise and dropout too: same outputs, gradients and counts."""
    noisy = options | {"expert_dropout": 0.3}
    if options["router"] in ("linear", "cosine"):
        noisy |= {"gate_noise": 2.0, "balance_loss": "importance_load"}
    native, plain = make_layer(**noisy), make_layer(backend="reference", **noisy)
    x = make_images()
    y, stats = native(x, keys_of())
    expected, plain_stats = plain(x, keys_of())
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(stats.load, plain_stats.load)
    assert (stats.dropped, stats.received) == (plain_stats.dropped, plain_stats.received)
    got = gradients(y, stats.loss, [x, *native.parameters()])
    wanted = gradients(expected, plain_stats.loss, [x, *plain.parameters()])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # the router is fp32


@pytest.mark.parametrize("router", ["linear", "expert_choice", "hash"])
def test_a_call_changes_choices_and_capacity_without_rebuilding(router: str) -> None:
    """One layer, three passes; the third is the first again, bit for bit."""
    layer, x = make_layer(router=router, capacity_factor=1.25, eval_capacity_factor=1.0), make_images()
    before = layer(x, keys_of())[0]
    call = RoutingOverrides(top_k=3, capacity_factor=0.5)
    compare(layer, x, factor=0.5, group_images=GROUP, tolerance=1e-10, call=call)
    assert torch.equal(layer(x, keys_of())[0], before)


@pytest.mark.parametrize("recompute", [False, True])
def test_swiglu_experts(recompute: bool) -> None:
    layer = make_layer(top_k=2, expert_activation="swiglu", recompute_activation=recompute)
    compare(layer, make_images(), factor=1.25, group_images=GROUP, tolerance=1e-10)


def test_a_shared_expert_is_added_for_every_token() -> None:
    """With it the layer is the layer without, plus a plain MLP of the same input."""
    layer, x = make_layer(capacity_factor=0.5, shared_expert=True), make_images()
    shared, layer.shared = layer.shared, None
    routed = layer(x, keys_of())[0]
    layer.shared = shared
    linear = torch.nn.functional.linear
    hidden = torch.nn.functional.gelu(linear(x, shared.fc1.weight, shared.fc1.bias))
    expected = routed + linear(hidden, shared.fc2.weight, shared.fc2.bias)
    torch.testing.assert_close(layer(x, keys_of())[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("eval_factor", [0.0, 0.5, 1.25])
def test_evaluation_equals_plain_loops(top_k: int, eval_factor: float) -> None:
    """The factor of evaluation counts, noise and dropout are off; dropless means one group of all images."""
    layer = make_layer(
        top_k=top_k,
        capacity_factor=1.0,
        eval_capacity_factor=eval_factor,
        gate_noise=1.0,
        expert_dropout=0.5,
    ).eval()
    group = GROUP if eval_factor else IMAGES
    expected = compare(layer, make_images(), factor=eval_factor, group_images=group, tolerance=1e-10)
    check_drops(expected, {"router": "linear", "capacity_factor": eval_factor, "top_k": top_k})


def test_without_fc2_bias() -> None:
    layer = make_layer(fc2_bias=False, top_k=2)
    assert len(list(layer.parameters())) == 4
    compare(layer, make_images(), factor=1.25, group_images=GROUP, tolerance=1e-10)


def test_balance_loss_alone_and_its_gradient() -> None:
    """The loss reaches the router and the tokens, but no expert; its weight scales it."""
    layer, x = make_layer(load_balance_weight=0.25), make_images()
    _, stats = layer(x, keys_of())
    asked = Asked(factor=1.25, group_images=GROUP, top_k=1)
    expected = reference(x, layer, keys_of(), asked)
    inputs = [x, layer.router.weight]
    got, wanted = torch.autograd.grad(stats.loss, inputs), torch.autograd.grad(expected.loss, inputs)
    for a, b in zip(got, wanted, strict=True):
        assert a.abs().max() > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    _, stats = layer(x, keys_of())
    experts = torch.autograd.grad(stats.loss, list(layer.experts.parameters()), allow_unused=True)
    assert experts == (None,) * 4


def test_one_expert_is_a_plain_mlp() -> None:
    """E = 1, gates softmax over one = 1: the layer is its expert."""
    layer = make_layer(num_experts=1, capacity_factor=0.0)
    x = make_images()
    y, stats = layer(x, keys_of())
    expected = torch.stack([torch.stack([expert_mlp(token, layer, 0) for token in image]) for image in x])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert stats.loss.item() == pytest.approx(0.01)  # perfect balance, weight .01


# Noise and dropout.


def noisy_layer() -> MoELayer:
    return make_layer(top_k=2, capacity_factor=1.0, gate_noise=2.0, expert_dropout=0.3)


def run(layer: MoELayer, x: Tensor, keys: Tensor) -> tuple[Tensor, MoEStats, tuple[Tensor, ...]]:
    y, stats = layer(x, keys)
    return y, stats, gradients(y, stats.loss, [x, *layer.parameters()])


def test_same_keys_same_bits() -> None:
    layer, x = noisy_layer(), make_images()
    y, stats, grads = run(layer, x, keys_of())
    torch.manual_seed(99)  # no draw comes from the global generator
    again, stats_again, grads_again = run(layer, x, keys_of())
    assert torch.equal(y, again)
    assert torch.equal(stats.loss, stats_again.loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def test_other_keys_other_draws_in_training_only() -> None:
    layer, x = noisy_layer(), make_images()
    others = sample_keys(2, torch.arange(IMAGES))
    assert not torch.allclose(layer(x, keys_of())[0], layer(x, others)[0])
    layer.eval()
    assert torch.equal(layer(x, keys_of())[0], layer(x, others)[0])


@pytest.mark.parametrize("option", ["gate_noise", "expert_dropout"])
def test_noise_and_dropout_each_change_the_output(option: str) -> None:
    x = make_images()
    plain = make_layer(top_k=2)(x, keys_of())[0]
    assert not torch.allclose(make_layer(top_k=2, **{option: 0.5})(x, keys_of())[0], plain)


def test_permuted_groups_permute_the_outputs() -> None:
    layer, x, keys = noisy_layer(), make_images(), keys_of()
    order = torch.tensor([4, 5, 0, 1, 2, 3])  # groups 2, 0, 1
    y, stats = layer(x, keys)
    permuted, permuted_stats = layer(x[order], keys[order])
    torch.testing.assert_close(permuted, y[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(permuted_stats.loss, stats.loss, rtol=1e-12, atol=0)
    assert torch.equal(permuted_stats.load, stats.load)
    assert stats.dropped == permuted_stats.dropped > 0


def test_groups_one_by_one_equal_the_whole_batch() -> None:
    """G forwards of one group: outputs side by side, gradients and counts summed, losses averaged."""
    layer, x, keys = noisy_layer(), make_images(), keys_of()
    cotangent = make_images(seed=8).detach()
    inputs = [x, *layer.parameters()]
    y, stats = layer(x, keys)
    whole = torch.autograd.grad((y * cotangent).sum() + stats.loss, inputs)

    outputs, losses, load, dropped = [], [], 0, 0
    total = [torch.zeros_like(tensor) for tensor in inputs]
    for first in range(0, IMAGES, GROUP):
        part = slice(first, first + GROUP)
        piece, piece_stats = layer(x[part], keys[part])
        scalar = (piece * cotangent[part]).sum() + piece_stats.loss / 3
        total = [a + b for a, b in zip(total, torch.autograd.grad(scalar, inputs), strict=True)]
        outputs.append(piece)
        losses.append(piece_stats.loss)
        load, dropped = load + piece_stats.load, dropped + piece_stats.dropped
    torch.testing.assert_close(torch.cat(outputs), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(losses) / 3, stats.loss, rtol=1e-12, atol=0)
    assert torch.equal(load, stats.load)
    assert dropped == stats.dropped > 0
    for a, b in zip(total, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def dropout_factors(top_k: int) -> Tensor:
    """Outputs of a layer that multiplies a constant by its dropout masks: (tokens, HIDDEN) in units of 1.

    fc1 gives every hidden unit gelu(1), fc2 hands hidden unit c to channel c, and the gates are 1 / top_k
    each: an output is gelu(1) times the mean of its choices' masks, each 0 or 1 / (1 - 1/2) = 2.
    """
    config = MoEConfig(
        blocks=(),
        num_experts=top_k,
        top_k=top_k,
        capacity_factor=0.0,
        gate_noise=0.0,
        balance_loss="none",
        expert_dropout=0.5,
        routing_group_images=1,
    )
    layer = moe_layer(config, dim=8, hidden=8, fc2_bias=False).double()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.experts.fc1_weight.zero_()
        layer.experts.fc1_bias.fill_(1.0)
        layer.experts.fc2_weight.copy_(torch.eye(8).expand(top_k, 8, 8))
    y, _ = layer(torch.randn(16, 64, 8, dtype=torch.float64), sample_keys(0, torch.arange(16)))
    return y.flatten(0, 1) / (0.5 * (1 + math.erf(1 / math.sqrt(2))))


def test_dropout_scales_and_drops_hidden_units_at_its_rate() -> None:
    factors = dropout_factors(top_k=1)
    zero, two = factors.abs() < 1e-12, (factors - 2).abs() < 1e-12
    assert (zero | two).all()
    assert abs(zero.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(zero.numel())


def test_dropout_masks_of_a_tokens_choices_are_independent() -> None:
    """Mean of two masks: 0, 1 or 2 with probabilities 1/4, 1/2, 1/4; the same mask twice never gives 1."""
    factors = dropout_factors(top_k=2)
    one = (factors - 1).abs() < 1e-12
    assert (one | (factors.abs() < 1e-12) | ((factors - 2).abs() < 1e-12)).all()
    assert abs(one.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(one.numel())


# The images of a forward pass.


@pytest.mark.parametrize(("training", "eval_factor"), [(True, 0.0), (False, 1.0)])
def test_images_must_fill_whole_groups(training: bool, eval_factor: float) -> None:
    layer = make_layer(eval_capacity_factor=eval_factor).train(training)
    with pytest.raises(ModelError) as error:
        layer(make_images(images=3), keys_of(3))
    assert str(error.value) == (
        "model.moe.routing_group_images (2) must divide the images of a forward pass (3); "
        "change it or the micro-batch"
    )


def test_dropless_evaluation_takes_any_batch() -> None:
    """The same answer for an image, in whatever company."""
    layer, x = make_layer(top_k=2).eval(), make_images()
    whole = layer(x, keys_of())[0]
    parts = torch.cat([layer(x[:1], keys_of(1))[0], layer(x[1:], keys_of(5))[0]])
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)  # the router is fp32
