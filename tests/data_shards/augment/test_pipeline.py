"""The whole augmentation: what it equals, what it does not depend on, what it refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.augment.erasing import draw_rectangles
from data_shards.augment.mixup import partners, weights
from data_shards.augment.operations import operate
from data_shards.augment.pipeline import Augment, AugmentConfig
from data_shards.errors import DataError

OFF = {"auto_augment": None, "color_jitter": 0.0, "erase_prob": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
SIDES, SAMPLES = (23, 37), 64  # odd, so that vector instructions leave a rest


def augment_of(config: AugmentConfig, *, seed: int, device: str = "cpu") -> Augment:
    """With ImageNet's mean and deviation."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Augment(config, seed=seed, mean=mean, std=std, device=device)


def batch(count: int = SAMPLES, start: int = 500) -> tuple[Tensor, Tensor, Tensor]:
    generator = np.random.default_rng(2)
    images = torch.from_numpy(generator.integers(0, 256, (count, 3, *SIDES), dtype=np.uint8))
    return images, torch.arange(count) % 10, torch.arange(start, start + count)


def augmented(config: AugmentConfig, rows: Tensor | slice = slice(None), device: str = "cpu") -> Tensor:
    images, targets = augment_of(config, seed=3, device=device)(*(part[rows] for part in batch()))
    return torch.cat([images.flatten(1), *(part[:, None].float() for part in targets)], 1).cpu()


def test_nothing_on_is_normalising() -> None:
    images, labels, positions = batch()
    ours, targets = augment_of(AugmentConfig(**OFF), seed=0)(images, labels, positions)
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    torch.testing.assert_close(ours, (images / 255.0 - mean) / std, atol=1e-5, rtol=0)
    assert torch.equal(targets.soft(10), torch.eye(10)[labels])
    assert not torch.equal(augmented(AugmentConfig()), augmented(AugmentConfig(**OFF)))


@pytest.mark.parametrize("changes", [{}, {"auto_augment": None}, {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}])
def test_no_split_or_order_of_the_batch_changes_an_image(changes: dict[str, float | None]) -> None:
    config = AugmentConfig(**changes)
    whole = augmented(config)
    for size in (2, 6, 32):
        parts = [augmented(config, slice(i, i + size)) for i in range(0, SAMPLES, size)]
        assert torch.equal(torch.cat(parts), whole)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(SAMPLES))
    assert torch.equal(augmented(config, shuffled), whole[shuffled])


def test_images_depend_on_seed_and_position_alone_and_arguments_are_kept() -> None:
    images, labels, positions = batch()
    before = images.clone()
    first, _ = augment_of(AugmentConfig(), seed=0)(images, labels, positions)
    again, _ = augment_of(AugmentConfig(), seed=0)(images, labels, positions)
    assert torch.equal(first, again)
    assert torch.equal(images, before)
    for seed, shift in ((1, 0), (0, 64)):
        other, _ = augment_of(AugmentConfig(), seed=seed)(images, labels, positions + shift)
        assert (other != first).flatten(1).any(1).double().mean() > 0.9


def test_the_stages_by_hand() -> None:
    images, labels, positions = batch()
    augment = augment_of(AugmentConfig(erase_prob=0.0), seed=3)
    ours, targets = augment(images, labels, positions)
    plan = augment.rand_augment.draw(3, positions, SIDES)
    for row in range(SAMPLES):
        for step in range(2):
            part, op, argument = images[row : row + 1], plan.ops[row, step], plan.arguments[row, step]
            operate(part, op[None], argument[None], augment.fill, "bicubic")
    expected = (images - augment.normalize.mean) / augment.normalize.std
    partner = positions.bitwise_xor(1) - positions[0]
    mix = augment.mixer.draw(3, positions, SIDES)
    share = weights(mix, SIDES)
    torch.testing.assert_close(ours, expected * share + expected[partner] * (1 - share), atol=1e-5, rtol=1e-5)
    assert torch.equal(targets.partner_labels, labels[partners(positions)])
    assert torch.equal(targets.lam, mix.lam.float())


def test_erasing_fills_its_rectangles_with_noise_and_nothing_else() -> None:
    images, labels, positions = batch(512)
    ours, _ = augment_of(AugmentConfig(**OFF | {"erase_prob": 0.5}), seed=0)(images * 0, labels, positions)
    black = ours[~(ours != ours.amin((2, 3), keepdim=True)).flatten(1).any(1)][0, :, 0, 0]  # an untouched one
    touched = ours != black[:, None, None]
    found = draw_rectangles(0.5, 0, positions, SIDES)
    expected = torch.zeros_like(touched)
    for row, top, left, height, width in zip(*found, strict=True):
        expected[row, :, top : top + height, left : left + width] = True
    assert torch.equal(touched, expected)
    noise = ours[touched]
    assert abs(noise.mean()) < 4 / len(noise) ** 0.5
    assert abs(noise.std() - 1) < 0.02
    assert len(noise.unique()) > 0.4 * min(len(noise), 2**16)


def test_rectangles_are_those_of_the_paper() -> None:
    found = draw_rectangles(0.25, 9, torch.arange(40_000), (224, 224))
    assert abs(len(found.rows) / 40_000 - 0.25) < 0.008
    area = (found.height * found.width).double() / 224**2
    ratio = found.height / found.width
    assert 0.019 < area.min() < 0.022
    assert 0.32 < area.max() < 0.34
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.004  # tall and large ones never fit: slightly below
    assert 0.28 < ratio.min() < 0.31
    assert abs(ratio.log().mean()) < 0.03
    assert (found.top + found.height <= 224).all()
    assert (found.left + found.width <= 224).all()
    assert found.top.min() == 0


def test_an_image_too_small_to_erase_is_left_alone() -> None:
    images, labels, positions = batch()
    config = AugmentConfig(**OFF | {"erase_prob": 1.0})
    ours, _ = augment_of(config, seed=0)(images[:, :, :1, :1], labels, positions)
    assert ours.isfinite().all()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("erase_prob", 1.5),
        ("mix_prob", -0.1),
        ("switch_prob", float("nan")),
        ("color_jitter", -1.0),
        ("mixup_alpha", -0.8),
        ("resample", "nearest"),
        ("auto_augment", "rand-m9"),
    ],
)
def test_nonsense_is_refused(option: str, value: object) -> None:
    with pytest.raises(DataError, match=option):
        AugmentConfig(**{option: value})


def test_group_size() -> None:
    assert AugmentConfig().group_size == 2
    assert AugmentConfig(mix_prob=0.0).group_size == AugmentConfig(**OFF).group_size == 1
    with pytest.raises(DataError, match="micro_batch_size even"):
        augmented(AugmentConfig(), slice(0, 3))
    assert len(augmented(AugmentConfig(**OFF), slice(0, 3))) == 3


@pytest.mark.gpu
def test_the_device_is_never_waited_for() -> None:
    augment = augment_of(AugmentConfig(), seed=3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, targets = augment(*batch())
        targets.soft(10)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    ours, theirs = augmented(AugmentConfig()), augmented(AugmentConfig(), device="cuda")
    assert (ours - theirs).abs().max() < 2 / 255 / 0.22  # one level: grid_sample rounds differently
    assert (ours != theirs).double().mean() < 0.05
