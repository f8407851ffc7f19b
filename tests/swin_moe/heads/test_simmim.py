"""SimMIM against plain arithmetic: masks, normalised targets, the loss, and the hidden pixels."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from swin_moe import ModelError
from swin_moe.heads.simmim import SimMIM, SimMIMConfig, build_simmim, draw_masks, enlarge, normalize_target
from swin_moe.random.keyed import sample_keys
from tests.models import V2, add_noise, randn, small_moe, small_swin

SMALL = small_swin(drop_path_rate=0.0)
EXPERTS = small_moe(blocks=((), (1,)), num_experts=2, routing_group_images=1)
KINDS = {
    "swin": SMALL,
    "v2": replace(SMALL, **V2, drop_path_rate=0.1),
    "moe": replace(SMALL, moe=EXPERTS),
}
HIDING = SimMIMConfig(mask_patch_size=8)


def make(kind: str, config: SimMIMConfig = HIDING) -> SimMIM:
    return add_noise(build_simmim(KINDS[kind], config).double(), 0.2)


def images_of(count: int, height: int = 32, width: int = 32) -> Tensor:
    return randn(count, 3, height, width, seed=1, dtype=torch.float64)


KEYS = sample_keys(5, torch.arange(2000))


@pytest.mark.parametrize(
    ("rows", "columns", "ratio", "hidden"),
    [(6, 6, 0.6, 22), (7, 7, 0.6, 30), (2, 3, 0.5, 3), (1, 1, 0.1, 1), (3, 3, 1.0, 9)],
)
def test_masks_hide_the_ratio_rounded_up(rows: int, columns: int, ratio: float, hidden: int) -> None:
    """192 pixels: 36 mask patches, ceil(21.6) = 22; 7 x 7: ceil(29.4) = 30."""
    masks = draw_masks(KEYS, rows, columns, ratio)
    assert masks.shape == (2000, rows, columns)
    assert (masks.flatten(1).sum(1) == hidden).all()


def test_every_place_is_hidden_as_often() -> None:
    """Of 2000 masks, 22/36 each; 4.5 standard deviations for the most extreme of 36."""
    share = draw_masks(KEYS, 6, 6, 0.6).double().mean(0)
    p = 22 / 36
    assert (share - p).abs().max() < 4.5 * math.sqrt(p * (1 - p) / 2000)
    assert len(draw_masks(KEYS, 6, 6, 0.6).flatten(1).unique(dim=0)) == 2000


def test_a_mask_belongs_to_its_sample() -> None:
    """The same alone, in other company, in another order; nothing drawn from the global generator."""
    whole, state = draw_masks(KEYS, 6, 6, 0.6), torch.get_rng_state()
    assert torch.equal(draw_masks(KEYS[7:8], 6, 6, 0.6)[0], whole[7])
    assert torch.equal(draw_masks(KEYS.flip(0), 6, 6, 0.6), whole.flip(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_enlarge_by_hand() -> None:
    mask = torch.tensor([[[True, False], [False, True]]])
    expected = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]  # the fourth row and column are cut
    assert enlarge(mask, 2, 3, 3)[0].int().tolist() == expected


@pytest.mark.parametrize("window", [3, 5, 47])
def test_normalised_target_by_plain_loops(window: int) -> None:
    """Around each pixel the window inside of the image: its mean, and its variance over count - 1."""
    images = images_of(2, 6, 9).float() * 3 + 1
    got, half = normalize_target(images, window), window // 2
    for b in range(2):
        for c in range(3):
            for i in range(6):
                for j in range(9):
                    values = [
                        images[b, c, y, x].item()
                        for y in range(max(0, i - half), min(6, i + half + 1))
                        for x in range(max(0, j - half), min(9, j + half + 1))
                    ]
                    mean = sum(values) / len(values)
                    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                    expected = (images[b, c, i, j].item() - mean) / math.sqrt(variance + 1e-6)
                    assert got[b, c, i, j].item() == pytest.approx(expected, abs=1e-4)


def test_a_flat_image_normalises_to_zero() -> None:
    assert normalize_target(torch.full((1, 3, 50, 50), 0.3), 47).abs().max() < 1e-2
    assert normalize_target(torch.full((1, 1, 1, 1), 2.0), 47).item() == 0.0


def test_loss_by_hand() -> None:
    """2 x 2 pixels of 3 channels, two hidden with errors 1 and 3 in every channel: 1 + 3."""
    model = build_simmim(SMALL, HIDING)
    images = torch.arange(12.0).view(1, 3, 2, 2)
    errors = torch.tensor([[1.0, 100.0], [100.0, -3.0]])
    mask = torch.tensor([[[True, False], [False, True]]])
    assert model.errors(images + errors, images, mask).tolist() == [4.0]
    assert model.errors(images + errors, images, mask & False).tolist() == [0.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [0, 5])
def test_the_whole_model_equals_its_parts(kind: str, window: int) -> None:
    """Embeddings replaced by hand, the encoder's own stages, the decoder as a product a token, pixels placed
    by hand, the loss summed by hand."""
    model = make(kind, replace(HIDING, norm_target_window=window)).eval()
    encoder, images, keys = model.encoder, images_of(2), KEYS[:2]
    output = model(images, keys)
    hidden = draw_masks(keys, 4, 4, 0.6)
    assert hidden.sum() == 2 * 10  # ceil(.6 * 16)

    x = encoder.patch_embed(images).clone()  # (2, 8, 8, C), patches of 4 pixels
    for b in range(2):
        for row in range(8):
            for column in range(8):
                if hidden[b, row // 2, column // 2]:
                    x[b, row, column] = model.mask_token[0, 0]
    for stage in encoder.layers:
        x, _ = stage(x, keys)
    x = encoder.norm(x)  # (2, 4, 4, 2C), each token one square of 8 x 8 pixels

    prediction = torch.zeros_like(images)
    total, count = 0.0, 0
    target = normalize_target(images, window).double() if window else images.float().double()
    weight, bias = model.decoder.weight[..., 0, 0], model.decoder.bias
    for b in range(2):
        for row in range(4):
            for column in range(4):
                values = (weight @ x[b, row, column] + bias).view(3, 8, 8)  # channel, then row, then column
                prediction[b, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = values
    for b in range(2):
        for i in range(32):
            for j in range(32):
                if hidden[b, i // 8, j // 8]:
                    count += 1
                    total += (prediction[b, :, i, j] - target[b, :, i, j]).abs().sum().item()
    assert output.prediction.shape == (2, 3, 32, 32)
    torch.testing.assert_close(output.prediction, prediction, rtol=1e-5, atol=1e-5)
    assert count == 2 * 10 * 64
    assert output.loss.item() == pytest.approx(total / (count + 1e-5) / 3, rel=1e-4)
    assert list(output.moe) == (["layers.1.blocks.1"] if kind == "moe" else [])


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_are_not_seen(kind: str) -> None:
    """Other pixels under the mask: the same prediction, another loss."""
    model, images, keys = make(kind).eval(), images_of(2), KEYS[:2]
    mask = enlarge(draw_masks(keys, 4, 4, 0.6), 8, 32, 32)[:, None]
    others = torch.where(mask, images + 5.0, images)
    first, second = model(images, keys), model(others, keys)
    assert torch.equal(first.prediction, second.prediction)
    assert first.loss != second.loss
    visible = torch.where(mask, images, images + 5.0)
    assert not torch.allclose(model(visible, keys).prediction, first.prediction)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    model = make(kind)
    output = model(images_of(4), KEYS[:4])
    (output.loss + sum(stats.loss for stats in output.moe.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_images_of_any_size() -> None:
    """37 x 20 pixels: 5 x 3 mask patches, 10 x 5 patches, a map of 5 x 3; predictions are cut."""
    model = make("v2", replace(HIDING, norm_target_window=47)).eval()
    output = model(images_of(2, 37, 20), KEYS[:2])
    assert output.prediction.shape == (2, 3, 37, 20)
    assert output.loss.isfinite()


def test_a_few_steps_learn_to_fill_in() -> None:
    model = build_simmim(SMALL, HIDING)
    images = torch.ones(4, 3, 32, 32) * torch.tensor([1.0, -1.0, 0.5, 2.0]).view(4, 1, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(20):
        loss = model(images, sample_keys(0, torch.arange(4) + 4 * step)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses) < 0.6 * losses[0]


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (build_simmim(SMALL, HIDING, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.decoder.weight, other.decoder.weight)
    assert first.mask_token.abs().max() > 0
    bound = 1 / math.sqrt(16)  # a 1 x 1 convolution of 16 channels
    assert 0.95 * bound < first.decoder.weight.abs().max() < bound
    assert "encoder.head.weight" not in first.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_patch_size": 0}, "simmim.mask_patch_size (0) must be at least 1"),
        ({"mask_ratio": 0.0}, "simmim.mask_ratio (0.0) must lie in (0, 1]"),
        ({"mask_ratio": 1.1}, "simmim.mask_ratio (1.1) must lie in (0, 1]"),
        ({"norm_target_window": 4}, "simmim.norm_target_window (4) must be 0 or an odd number above 1"),
        ({"mask_patch_size": 6}, "model.patch_size (4) must divide simmim.mask_patch_size (6)"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        build_simmim(SMALL, SimMIMConfig(**options))
