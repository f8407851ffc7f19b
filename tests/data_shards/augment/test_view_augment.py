"""The colour operations of views against PIL and torchvision, one view at a time, by the same draws."""

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import functional

from data_shards.augment.blur import box_weights, gaussian_blur
from data_shards.augment.photometric import turn_hues
from data_shards.augment.view_augment import ViewAugment, change_colours, draw_view
from data_shards.augment.view_options import ViewColours
from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, uniform

SEED = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OTHER = {"blur_prob": (0.5, 0.9), "solarize_prob": (0.4, 0.2), "gray_prob": 0.3}  # so that all come up


def pictures(count: int, height: int = 24, width: int = 20) -> torch.Tensor:
    """Smooth colours with noise: (count, 3, height, width) uint8."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 5, 3)).astype(np.uint8)
    resized = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
    noisy = np.stack([np.asarray(one, np.int64) for one in resized])
    noisy = (noisy + generator.integers(-20, 21, noisy.shape)).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(noisy).permute(0, 3, 1, 2)


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def changed_by_pil(image: Image.Image, colours: ViewColours, position: int, view: int) -> Image.Image:
    """The published operations in their order, by PIL and torchvision."""
    key = DrawKey(SEED, position, view).draws(Purpose.VIEW)
    draws = [uniform(key, i) for i in range(10)]
    strengths = (colours.brightness, colours.contrast, colours.saturation)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    if draws[0] < colours.jitter_prob:
        for which in list(permutations(range(4)))[int(draws[1] * 24)]:
            if which == 3:
                turn = colours.hue * (2 * draws[5] - 1)
                image = functional.adjust_hue(image, turn) if colours.hue else image
            else:
                low = max(0.0, 1 - strengths[which])
                factor = low + draws[2 + which] * (1 + strengths[which] - low)
                image = enhancers[which](image).enhance(float(np.float32(factor)))
    if draws[6] < colours.gray_prob:
        image = ImageOps.grayscale(image).convert("RGB")
    if draws[7] < colours.blur_prob[view]:
        low, high = colours.blur_sigma
        sigma = (low + draws[8] * (high - low)) * min(image.size) / 224
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    if draws[9] < colours.solarize_prob[view]:
        image = ImageOps.solarize(image, colours.solarize_threshold)
    return image


@pytest.mark.parametrize("view", [0, 1])
def test_all_but_the_hue_is_what_pil_computes(view: int) -> None:
    """Bit for bit, with sigmas up to 4 pixels here."""
    colours = ViewColours(hue=0.0, blur_sigma=(1.0, 40.0), saturation=0.6, **OTHER)  # type: ignore[arg-type]
    positions = torch.arange(1000, 1064)
    images = pictures(len(positions))
    changed = images.clone()
    change_colours(changed, draw_view(colours, SEED, positions, view, (24, 20)), 128)
    for position, before, after in zip(positions.tolist(), images, changed, strict=True):
        assert torch.equal(after, as_tensor(changed_by_pil(as_pil(before), colours, position, view)))
    assert sum(not torch.equal(*pair) for pair in zip(images, changed, strict=True)) > 50


def test_with_the_hue_it_is_near() -> None:
    """A step of a hue is 2 degrees here and 1.4 in PIL; a later contrast or solarize enlarges the error."""
    colours = ViewColours(blur_prob=(0.0, 0.0), solarize_prob=(0.0, 0.0))
    positions = torch.arange(64)
    images = pictures(len(positions))
    changed = images.clone()
    change_colours(changed, draw_view(colours, SEED, positions, 1, (24, 20)), 128)
    expected = torch.stack(
        [as_tensor(changed_by_pil(as_pil(one), colours, position, 1)) for position, one in enumerate(images)]
    )
    error = (changed.int() - expected.int()).abs().float()
    assert error.mean() < 1.5
    assert error.max() <= 20


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.05, 0.1])
def test_hues_are_turned_as_torchvision_does(turn: float) -> None:
    images = pictures(8)
    changed = images.clone()
    turned = torch.arange(8) % 4 != 0
    turn_hues(changed, turned, torch.full((8,), round(180 * turn)))
    expected = torch.stack([as_tensor(functional.adjust_hue(as_pil(one), turn)) for one in images])
    error = (changed.int() - expected.int()).abs().float()[turned]
    assert error.mean() < 1.5
    assert error.max() <= 18  # a step is 8.5 levels of a saturated colour, of PIL 6, and both round
    assert torch.equal(changed[~turned], images[~turned])


def test_the_blur_is_bit_for_bit_pils() -> None:
    sigmas = torch.tensor([0.014, 0.1, 0.29, 0.5, 1.0, 1.4, 1.5, 2.0, 3.7, 9.0], dtype=torch.float64)
    images = pictures(len(sigmas))
    blurred = gaussian_blur(images, sigmas)
    for sigma, before, after in zip(sigmas.tolist(), images, blurred, strict=True):
        assert torch.equal(after, as_tensor(as_pil(before).filter(ImageFilter.GaussianBlur(sigma))))


def test_the_taps_have_the_variance_of_the_gaussian() -> None:
    """Three passes have three times the variance of one; the weights add up to 1 within rounding."""
    sigmas = torch.tensor([0.3, 1.0, 2.0, 5.0])
    weights = box_weights(sigmas).double() / 2**24
    taps = torch.arange(weights.shape[1]) - weights.shape[1] // 2
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        3 * (weights * taps.square()).sum(1), sigmas.double().square(), rtol=1e-4, atol=1e-4
    )


def test_draws_are_of_the_position_and_the_view_alone() -> None:
    """Any order and any batch gives a sample the same views; the two views differ."""
    positions, images = torch.tensor([7, 90000, 3, 12]), pictures(8).unflatten(0, (4, 2))
    augment = ViewAugment(ViewColours(), seed=SEED, mean=MEAN, std=STD)
    whole = augment(images, positions)
    for row in range(4):
        alone = augment(images[row : row + 1], positions[row : row + 1])
        assert all(torch.equal(one[0], two[row]) for one, two in zip(alone, whole, strict=True))
    same = augment(images[:, :1].expand(-1, 2, -1, -1, -1), positions)
    assert not torch.equal(same[0], same[1])
    plain = ViewAugment(None, seed=SEED, mean=MEAN, std=STD)(images, positions)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    torch.testing.assert_close(plain[1], (images[:, 1].float() - mean) / std)


def test_shares_of_the_operations() -> None:
    """Of 20,000 samples, within four standard deviations."""
    positions = torch.arange(20000)
    plans = [draw_view(ViewColours(), SEED, positions, view, (224, 224)) for view in range(2)]
    expected = {"gray": (0.2, 0.2), "blurred": (1.0, 0.1), "solarized": (0.0, 0.2)}
    for name, shares in expected.items():
        for plan, share in zip(plans, shares, strict=True):
            found = getattr(plan, name).double().mean().item()
            assert abs(found - share) <= 4 * (share * (1 - share) / 20000) ** 0.5
    jittered = (plans[0].turned.sum(1) == 1).double().mean().item()
    assert abs(jittered - 0.8) < 4 * (0.16 / 20000) ** 0.5
    assert 0.1 <= plans[1].sigmas.min() < 0.11
    assert 1.99 < plans[1].sigmas.max() <= 2.0
    hues = plans[0].hues[plans[0].turned]
    assert (hues.min(), hues.max()) == (-18, 18)
    first = plans[0].turned[:, 0].sum() / plans[0].turned.sum()  # the hue comes first in a quarter of them
    assert abs(first.item() - 0.25) < 4 * (0.1875 / 16000) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gray_prob": 1.5}, r"colours.gray_prob \(1.5\) must be in 0 ... 1"),
        ({"blur_prob": (0.5, -1.0)}, r"colours.blur_prob \(\[0.5, -1.0\]\) must be in 0 ... 1"),
        ({"hue": 0.6}, r"colours.hue \(0.6\) must be in 0 ... 0.5; 0 turns it off"),
        ({"brightness": -1.0}, r"colours.brightness \(-1.0\) must be in 0 ... 100"),
        ({"blur_sigma": (2.0, 1.0)}, r"colours.blur_sigma \(\[2.0, 1.0\]\) must be 0 <= low <= high"),
        ({"solarize_threshold": 300}, r"colours.solarize_threshold \(300\) must be in 0 ... 256"),
        ({"blur_prob": (1.0,)}, r"colours.blur_prob \(\[1.0\]\) and .* one value for each view"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ViewColours(**options)  # type: ignore[arg-type]
