"""Clips: every frame is augmented as an image at the position of its clip."""

import pytest
import torch
from torch import Tensor

from data_shards.augment.clips import ClipAugment
from data_shards.augment.erasing import draw_rectangles
from data_shards.augment.options import AugmentConfig
from data_shards.augment.pipeline import Augment
from data_shards.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIPS, FRAMES, SIDES = 16, 5, (23, 37)
STRONG = AugmentConfig(auto_augment="rand-m7-n4-mstd0.5-inc1", erase_prob=0.0)


def clips_of(frames: int = FRAMES) -> Tensor:
    """(B, D, 3, H, W) uint8, with channels last in memory, as a stream gives them."""
    generator = torch.Generator().manual_seed(4)
    made = torch.randint(0, 256, (CLIPS, frames, *SIDES, 3), dtype=torch.uint8, generator=generator)
    return made.movedim(-1, 2)


LABELS, POSITIONS = torch.arange(CLIPS) % 7, torch.arange(500, 500 + CLIPS)


def augmented(config: AugmentConfig | None, clips: Tensor, rows: slice = slice(None)) -> Tensor:
    augment = ClipAugment(config, seed=3, mean=MEAN, std=STD)
    found, targets = augment(clips[rows], LABELS[rows], POSITIONS[rows])
    assert torch.equal(targets.labels, LABELS[rows])
    assert found.is_contiguous()
    return found


@pytest.mark.parametrize(
    "config",
    [
        STRONG,
        AugmentConfig(auto_augment=None, color_jitter=0.4, erase_prob=0.0),
        AugmentConfig(auto_augment=None, color_jitter=0.0, erase_prob=0.0, switch_prob=1.0),
    ],
    ids=["randaugment and mixing", "jitter and mixing", "cutmix"],
)
def test_each_frame_is_augmented_as_an_image(config: AugmentConfig) -> None:
    clips = clips_of()
    before = clips.clone()
    found = augmented(config, clips)
    assert torch.equal(clips, before)
    assert found.shape == (CLIPS, 3, FRAMES, *SIDES)
    images = Augment(config, seed=3, mean=MEAN, std=STD)
    for frame in range(FRAMES):
        wanted, targets = images(clips[:, frame], LABELS, POSITIONS)
        assert torch.equal(found[:, :, frame], wanted)
    _, ours = ClipAugment(config, seed=3, mean=MEAN, std=STD)(clips, LABELS, POSITIONS)
    assert torch.equal(ours.soft(7), targets.soft(7))


def test_no_configuration_normalizes_alone() -> None:
    clips = clips_of()
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    wanted = (clips.transpose(1, 2) / 255.0 - mean) / std
    torch.testing.assert_close(augmented(None, clips), wanted, atol=1e-5, rtol=0)


def test_a_clip_has_one_rectangle_and_each_frame_its_noise() -> None:
    config = AugmentConfig(auto_augment=None, color_jitter=0.0, erase_prob=0.5, mix_prob=0.0)
    clips = clips_of()
    touched = augmented(config, clips) != augmented(None, clips)
    rectangles = draw_rectangles(0.5, 3, POSITIONS, SIDES)
    assert 0 < len(rectangles.rows) < CLIPS
    expected = torch.zeros_like(touched)
    for row, top, left, height, width in zip(*rectangles, strict=True):
        expected[row, :, :, top : top + height, left : left + width] = True
    assert torch.equal(touched, expected)
    row, top, left, height, width = next(zip(*rectangles, strict=True))
    noise = augmented(config, clips)[row, :, :, top : top + height, left : left + width]
    for frame in range(1, FRAMES):
        assert not torch.equal(noise[:, frame], noise[:, 0])


def test_a_clip_of_one_frame_is_an_image() -> None:
    config = AugmentConfig()
    clips = clips_of(1)
    wanted, _ = Augment(config, seed=3, mean=MEAN, std=STD)(clips[:, 0], LABELS, POSITIONS)
    assert torch.equal(augmented(config, clips)[:, :, 0], wanted)


def test_no_split_of_the_batch_changes_a_clip() -> None:
    config, clips = AugmentConfig(), clips_of()
    whole = augmented(config, clips)
    parts = [augmented(config, clips, slice(i, i + 4)) for i in range(0, CLIPS, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_what_is_refused() -> None:
    clips = clips_of()
    with pytest.raises(DataError, match="micro_batch_size even"):
        augmented(AugmentConfig(), clips, slice(0, 3))
    with pytest.raises(ValueError, match="positions are on meta"):
        ClipAugment(None, seed=0, mean=MEAN, std=STD)(clips, LABELS, POSITIONS.to("meta"))
