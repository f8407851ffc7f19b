"""The whole model: shapes, weights from names, gradients, randomness."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallel.experts.placement import ExpertParallel, experts_of
from swin_moe import ModelConfig, SwinTransformer, build_model
from swin_moe.backbone.initialize import initialize
from swin_moe.backbone.model import HEAD_SITE
from swin_moe.moe.layer import MoELayer
from swin_moe.random.keyed import branch_scales, sample_keys
from tests.models import add_noise, randn, small_moe, small_swin

TINY = ModelConfig()

# Two stages of 4 x 4 and 2 x 2 tokens, window 2: the first stage has a shifted block, and both an MoE.
TOY = small_swin(
    image_size=16,
    window_size=2,
    position_bias="log_cpb",
    drop_path_rate=0.2,
    drop_rate=0.1,
    moe=small_moe(top_k=2, capacity_factor=1.0),
)


def on_meta(config: ModelConfig) -> SwinTransformer:
    with torch.device("meta"):
        return SwinTransformer(config)


def test_blocks_shift_in_turn_and_only_where_the_map_exceeds_the_window() -> None:
    """Swin-T at 224: maps of 56, 28, 14, 7 and windows of 7: the last stage never shifts."""
    shifts = [
        [block.grid.shift(TINY.stage_resolution(i)[0], 0) for block in stage.blocks]
        for i, stage in enumerate(on_meta(TINY).layers)
    ]
    assert shifts == [[0, 3], [0, 3], [0, 3] * 3, [0, 0]]


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    """12 blocks, rate .1: 0, .1/11, .2/11 … .1."""
    rates = [block.drop_path1.rate for stage in on_meta(TINY).layers for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_every_random_place_has_its_own_site() -> None:
    model = build_model(TOY)
    sites = [module.site for module in model.modules() if hasattr(module, "site")]
    assert len(sites) == len(set(sites))
    # 1 for the patches, 3 a block (attention, two drop paths), 2 an MLP, 2 an MoE (router, experts)
    assert sorted(sites) == [HEAD_SITE, *range(1 + 4 * 3 + 2 * 2 + 2 * 2)]


def images_and_keys(images: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    pixels = randn(images, 3, 16, 16, dtype=torch.float64)
    return pixels.to(dtype), sample_keys(0, torch.arange(images))


def test_output_shapes() -> None:
    output = build_model(TOY)(*images_and_keys())
    assert output.logits.shape == (4, 5)
    assert list(output.moe) == ["layers.0.blocks.1", "layers.1.blocks.0"]
    # 4 images of 16 and 4 tokens, two choices each
    assert [stats.load.sum().item() for stats in output.moe.values()] == [4 * 16 * 2, 4 * 4 * 2]
    assert [stats.load.shape for stats in output.moe.values()] == [(4,), (4,)]
    losses = [stats.loss for stats in output.moe.values()]
    torch.testing.assert_close(output.aux_loss, losses[0] + losses[1])


def test_shapes_on_the_meta_device() -> None:
    model = on_meta(TINY).eval()
    assert model(torch.empty(2, 3, 224, 224, device="meta")).logits.shape == (2, 1000)


def test_logits_are_the_head_of_the_mean_normalised_token() -> None:
    """Checked from the last block on: norm, mean over the 2 x 2 tokens, linear head."""
    model = build_model(replace(TOY, init_std=0.5)).double().eval()
    maps: list[Tensor] = []
    model.layers[-1].register_forward_hook(lambda _module, _inputs, output: maps.append(output[0]))
    logits = model(*images_and_keys(dtype=torch.float64)).logits
    (x,) = maps
    assert x.shape == (4, 2, 2, 16)
    centred = x - x.mean(-1, keepdim=True)
    tokens = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = tokens.flatten(1, 2).sum(1) / 4 @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_a_dense_model_has_no_auxiliary_loss() -> None:
    output = build_model(replace(TOY, moe=None)).eval()(*images_and_keys())
    assert output.moe == {}
    assert output.aux_loss.item() == 0.0
    assert output.aux_loss.dtype == torch.float32


# Initial weights.


def weights(model: SwinTransformer) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_weights_are_a_function_of_seed_and_name() -> None:
    """Not of the global generator, nor of what else is in the model."""
    torch.manual_seed(1)
    first = weights(build_model(TOY, seed=3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    model = SwinTransformer(TOY, ExpertParallel.on_one_rank(4))
    torch.set_rng_state(before)
    initialize(model, seed=3, std=TOY.init_std)
    assert torch.equal(torch.get_rng_state(), before)  # initialize itself draws nothing from it
    second = weights(model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    deeper = weights(build_model(replace(TOY, depths=(3, 2)), seed=3))
    assert first.keys() < deeper.keys()
    assert all(torch.equal(first[name], deeper[name]) for name in first)

    other = weights(build_model(TOY, seed=4))
    drawn = [name for name in first if first[name].unique().numel() > 1]
    assert len(drawn) > 20
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_weights_are_drawn_on_the_cpu_whatever_the_device_of_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ZeRO 3 makes parameters on the GPU, which a CPU generator cannot fill; here they are on meta."""
    drawn = 0
    with torch.device("meta"):
        model = SwinTransformer(TOY, ExpertParallel.on_one_rank(4))

    def watched(name: str) -> Callable[..., Tensor]:
        original = getattr(nn.init, name)

        def draw(tensor: Tensor, *args: Any, generator: torch.Generator, **options: Any) -> Tensor:
            nonlocal drawn
            drawn += 1
            assert tensor.device == generator.device
            return original(tensor, *args, generator=generator, **options)

        return draw

    for name in ("uniform_", "normal_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, name, watched(name))
    for module in model.modules():
        if hasattr(module, "reset_buffers"):
            monkeypatch.setattr(module, "reset_buffers", lambda: None)
    initialize(model, seed=3, std=TOY.init_std)
    assert drawn > 20


def test_more_experts_leave_the_first_ones_as_they_were() -> None:
    few = weights(build_model(TOY))
    many = weights(build_model(replace(TOY, moe=replace(TOY.moe, num_experts=8))))
    experts = [name for name in few if ".experts." in name]
    assert len(experts) == 2 * 4
    assert all(torch.equal(few[name], many[name][:4]) for name in experts)
    for name in experts:
        if name.endswith("weight"):  # and no two experts start alike
            assert len(many[name].flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize("rank", [0, 1])
def test_a_slice_of_the_experts_holds_the_same_weights(rank: int) -> None:
    """Two ranks of two experts each; the group is needed to run, not to build."""
    whole = weights(build_model(TOY, seed=3))
    local = range(2 * rank, 2 * rank + 2)
    model = SwinTransformer(TOY, ExpertParallel(num_experts=4, local_experts=local, ep_size=2))
    initialize(model, seed=3, std=TOY.init_std)
    sliced = 0
    for name, parameter in model.named_parameters():
        if experts_of(parameter) is None:
            assert torch.equal(parameter, whole[name])
        else:
            assert torch.equal(parameter, whole[name][local.start : local.stop])
            sliced += 1
    assert sliced == 2 * 4


def test_weights_by_kind() -> None:
    """Truncated normal of init_std, norms 1, biases 0, and the patch projection as a convolution's default.

    8 x 3 x 4 x 4 patch weights: uniform in +-1 / sqrt(3 * 4 * 4).
    """
    model = build_model(replace(TOY, init_std=0.5))
    for name, value in weights(model).items():
        if name == "patch_embed.proj.weight":
            bound = 1 / math.sqrt(48)
            assert 0.95 * bound < value.abs().max() < bound
        elif name.endswith("bias"):
            assert (value == 0).all()
        elif "norm" in name:
            assert (value == 1).all()
        else:
            assert abs(value.mean()) < 4 * 0.5 / math.sqrt(value.numel())
            # a sample deviation has relative error 1 / sqrt(2 n)
            assert abs(value.std() / 0.5 - 1) < 4 / math.sqrt(2 * value.numel())


def test_the_position_bias_table_is_drawn_too() -> None:
    table = build_model(TINY).layers[2].blocks[0].attention.position_bias.relative_position_bias_table
    assert table.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * table.numel()))


# Forward and backward.


@pytest.mark.parametrize("position_bias", ["table", "log_cpb"])
def test_every_parameter_gets_a_gradient(position_bias: str) -> None:
    model = build_model(replace(TOY, position_bias=position_bias, init_std=0.5))
    output = model(*images_and_keys())
    (output.logits.square().sum() + output.aux_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_central_differences(training: bool) -> None:
    """Along a random direction in all parameters: (f(w + e u) - f(w - e u)) / 2e, with an error of e^2.

    Drops, noise, dropout and drop path are all on in training; small steps do not change who is dropped.
    Fresh biases of 0 put the offset (0, 0) of the log-CPB network on the kink of its ReLU, so weights move
    off their initial values first.
    """
    model = add_noise(build_model(replace(TOY, init_std=0.3)).double().train(training), 0.1)
    images, keys = images_and_keys(dtype=torch.float64)
    parameters = list(model.parameters())
    direction = [randn(*p.shape, seed=1 + i, dtype=torch.float64) for i, p in enumerate(parameters)]

    def loss() -> Tensor:
        output = model(images, keys)
        return output.logits.square().sum() + 10 * output.aux_loss

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, u in zip(parameters, direction, strict=True):
                parameter.add_(u, alpha=step)
            value = loss().item()
            for parameter, u in zip(parameters, direction, strict=True):
                parameter.sub_(u, alpha=step)
        return value

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * u).sum() for g, u in zip(gradients, direction, strict=True)).item()
    step = 1e-6
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-6)


def test_groups_one_by_one_equal_the_whole_batch() -> None:
    """Two micro-batches of a routing group each, with dropout, drop path, noise and drops: the same training.

    The gradient of a mean over 4 images and over 2 groups is the mean of the two micro-batches' gradients.
    """
    model = build_model(replace(TOY, init_std=0.3)).double()
    images, keys = images_and_keys(dtype=torch.float64)
    parameters = list(model.parameters())

    def step(part: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        output = model(images[part], keys[part])
        loss = output.logits.square().sum(1).mean() + output.aux_loss
        return output.logits, torch.autograd.grad(loss, parameters)

    logits, gradients = step(slice(0, 4))
    (first, grads_1), (second, grads_2) = step(slice(0, 2)), step(slice(2, 4))
    torch.testing.assert_close(torch.cat([first, second]), logits, rtol=1e-12, atol=1e-12)
    for whole, a, b in zip(gradients, grads_1, grads_2, strict=True):
        torch.testing.assert_close((a + b) / 2, whole, rtol=1e-12, atol=1e-12)


def test_without_keys_the_global_generator_decides() -> None:
    model = build_model(replace(TOY, drop_rate=0.5, init_std=0.3))
    images, _ = images_and_keys()
    torch.manual_seed(7)
    first, second = model(images).logits, model(images).logits
    torch.manual_seed(7)
    again = model(images).logits
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)


def test_evaluation_is_deterministic_without_keys() -> None:
    model = build_model(replace(TOY, init_std=0.3)).eval()
    images, _ = images_and_keys()
    assert torch.equal(model(images).logits, model(images).logits)


@pytest.mark.parametrize("shift", [0, 1])
def test_attention_reaches_the_windows_of_the_shift_and_no_further(shift: int) -> None:
    """4 x 4 tokens, window 2. Touch one token of one block and see which ones change.

    Plain windows: (1, 1) shares rows and columns 0..1. Shifted by one, the windows are rows {0}, {1, 2}, {3}
    by columns {0}, {1, 2}, {3}: (1, 1) shares 1..2 x 1..2, (0, 2) shares 0 x 1..2, (3, 0) is a corner alone.
    """
    config = replace(TOY, moe=None, init_std=0.5)
    block = build_model(config).layers[0].blocks[shift].eval()
    assert block.grid.shift(4, 0) == block.grid.shift(4, 1) == shift
    x, keys = randn(1, 4, 4, 8), torch.zeros(1).long()
    windows = {
        0: {(1, 1): [(0, 0), (0, 1), (1, 0), (1, 1)], (3, 0): [(2, 0), (2, 1), (3, 0), (3, 1)]},
        1: {(1, 1): [(1, 1), (1, 2), (2, 1), (2, 2)], (0, 2): [(0, 1), (0, 2)], (3, 0): [(3, 0)]},
    }
    for (row, column), window in windows[shift].items():
        touched = x.clone()
        touched[0, row, column, 0] += 1.0
        changed = (block(touched, keys)[0] - block(x, keys)[0]).abs().amax(-1)[0] > 0
        assert [tuple(place) for place in changed.nonzero().tolist()] == window


def test_block_is_two_residual_branches() -> None:
    """y = x + keep1 * attention(norm1(x)); y + keep2 * mlp(norm2(y)) (Liu et al., eq. 3)."""
    config = replace(TOY, moe=None, init_std=0.5, drop_path_rate=0.5, drop_rate=0.0)
    block = build_model(config).double().layers[1].blocks[1]  # 2 x 2 tokens: the window, not shifted
    x = randn(64, 2, 2, 16, dtype=torch.float64)
    keys = sample_keys(0, torch.arange(64))
    keep1, keep2 = branch_scales(block.drop_paths, keys, torch.float64)[:, :, None, None, None]
    assert {(a, b) for a, b in zip(keep1.view(-1).tolist(), keep2.view(-1).tolist(), strict=True)} == {
        (a, b) for a in (0.0, 2.0) for b in (0.0, 2.0)
    }
    y = x + keep1 * block.attention(block.norm1(x).view(64, 4, 16)).view_as(x)
    mlp = block.mlp
    hidden = block.norm2(y) @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = y + keep2 * (hidden @ mlp.fc2.weight.T + mlp.fc2.bias)
    torch.testing.assert_close(block(x, keys)[0], expected, rtol=1e-12, atol=1e-12)


def test_moe_layers_stand_where_the_configuration_says() -> None:
    model = build_model(TOY)
    kinds = [[isinstance(block.mlp, MoELayer) for block in stage.blocks] for stage in model.layers]
    assert kinds == [[False, True], [True, False]]
