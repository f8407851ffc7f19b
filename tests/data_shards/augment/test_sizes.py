"""Augmentation of images of any height and width: odd, wide, tall, one pixel."""

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from data_shards.augment.erasing import AREA, RATIO, draw_rectangles, erase
from data_shards.augment.mixup import Mixer
from data_shards.augment.operations import operate
from data_shards.augment.pipeline import Augment, AugmentConfig
from data_shards.augment.randaugment import ImageOp, RandAugment
from data_shards.format.rng import Purpose, fold, uniform

SIZES = [(24, 40), (37, 23), (5, 101), (1, 1), (75, 48)]
POSITIONS = torch.arange(400)


def noise(sides: tuple[int, int], count: int = 4) -> Tensor:
    generator = np.random.default_rng(7)
    return torch.from_numpy(generator.integers(0, 256, (count, 3, *sides), dtype=np.uint8))


# (an operation and its argument, the one that does the same to the transposed image)
TRANSPOSED = [
    ((ImageOp.SHEAR_X, 0.27), (ImageOp.SHEAR_Y, 0.27)),
    ((ImageOp.TRANSLATE_X, -3.3), (ImageOp.TRANSLATE_Y, -3.3)),
    ((ImageOp.ROTATE, 27.0), (ImageOp.ROTATE, -27.0)),
    ((ImageOp.SHARPNESS, 1.7), (ImageOp.SHARPNESS, 1.7)),
    ((ImageOp.COLOR, 0.3), (ImageOp.COLOR, 0.3)),
    ((ImageOp.EQUALIZE, 0.0), (ImageOp.EQUALIZE, 0.0)),
    ((ImageOp.AUTO_CONTRAST, 0.0), (ImageOp.AUTO_CONTRAST, 0.0)),
    ((ImageOp.CONTRAST, 1.7), (ImageOp.CONTRAST, 1.7)),
]


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("ours", "theirs"), TRANSPOSED, ids=lambda pair: pair[0].name)
def test_a_tall_image_is_a_wide_one_transposed(
    ours: tuple[ImageOp, float], theirs: tuple[ImageOp, float], resample: str
) -> None:
    fill = torch.tensor([124, 116, 104], dtype=torch.uint8)
    for sides in ((23, 57), (1, 9), (2, 7)):
        wide = noise(sides)
        tall = wide.mT.contiguous()
        for images, (op, argument) in ((wide, ours), (tall, theirs)):
            count = len(images)
            operate(images, torch.full((count,), int(op)), torch.full((count,), argument), fill, resample)
        difference = (wide.int() - tall.mT.int()).abs()
        assert (difference > 1).double().mean() < 0.002  # a source point on the very edge may fall either way
        assert (difference > 0).double().mean() < 0.02


class Draws:
    """`random` of timm's RandomErasing: it gives the draws of ours, for one sample after the other.

    Ours draws whether a sample is erased, then area, ratio, top and left of each try.
    """

    def __init__(self, seed: int, positions: Tensor) -> None:
        self.keys = iter([fold(Purpose.ERASE, seed, int(position)) for position in positions])

    def random(self) -> float:
        """The first draw of the next sample."""
        self.key, self.counter = next(self.keys), 0
        return uniform(self.key, 0)

    def uniform(self, low: float, high: float) -> float:
        """An area or a ratio."""
        self.counter += 1
        if self.counter % 4 == 3:  # the try before did not fit: timm draws no place for it
            self.counter += 2
        return low + uniform(self.key, self.counter) * (high - low)

    def randint(self, low: int, high: int) -> int:
        """A top or a left edge, both ends included."""
        self.counter += 1
        return low + int(uniform(self.key, self.counter) * (high - low + 1))


@pytest.mark.parametrize("sides", SIZES)
def test_erased_rectangles_are_timms(sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """timm erases by the same draws, which replace its generator."""
    monkeypatch.setattr("timm.data.random_erasing.random", Draws(3, POSITIONS))
    theirs, ours = torch.zeros(len(POSITIONS), 3, *sides), torch.zeros(len(POSITIONS), 3, *sides)
    erasing = RandomErasing(0.25, AREA[0], AREA[1], RATIO[0], max_aspect=RATIO[1], mode="const", device="cpu")
    erasing(theirs.sub_(1))  # -1 becomes 0
    rectangles = draw_rectangles(0.25, 3, POSITIONS, sides)
    erase(ours.sub_(1), rectangles, 3, POSITIONS, torch.zeros(2**16))
    assert torch.equal(ours, theirs)
    assert bool((ours == 0).any()) == (sides != (1, 1))


def test_operations_do_not_depend_on_the_size_but_shifts_are_fractions_of_it() -> None:
    policy = RandAugment(magnitude=9.0, magnitude_std=0.5)
    ops, unit = policy.draw(1, POSITIONS, (1, 1))
    applied, scale = ops != ImageOp.NOTHING, torch.ones_like(unit)
    for height, width in SIZES:
        found, arguments = policy.draw(1, POSITIONS, (height, width))
        assert torch.equal(found, ops)
        scale[ops == ImageOp.TRANSLATE_X] = width
        scale[ops == ImageOp.TRANSLATE_Y] = height
        torch.testing.assert_close(arguments[applied], (unit * scale)[applied])


def test_who_mixes_and_by_how_much_does_not_depend_on_the_size() -> None:
    mixer = Mixer(0.8, 1.0, 0.7, 0.5)
    square = mixer.draw(1, POSITIONS, (1000, 1000))
    for sides in SIZES:
        mix = mixer.draw(1, POSITIONS, sides)
        assert torch.equal(mix.cut, square.cut)
        assert torch.equal(mix.lam[~mix.cut], square.lam[~mix.cut])
        # box sides are fractions of the image's: rounded down to even pixels, at a centre rounded down
        fraction = mix.box / torch.tensor([sides[0], sides[0], sides[1], sides[1]])
        error = (fraction - square.box / 1000).abs().amax(0)
        assert (error <= torch.tensor([2 / sides[0]] * 2 + [2 / sides[1]] * 2) + 0.003).all()


def test_one_augmentation_takes_batches_of_any_size_in_turn() -> None:
    config = AugmentConfig(erase_prob=1.0)
    normal = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    augment, labels = Augment(config, seed=2, **normal), torch.arange(8)
    for sides in (*SIZES, *SIZES[::-1]):
        images = noise(sides, 8)
        mixed, targets = augment(images, labels, labels)
        assert mixed.shape == images.shape
        alone, _ = Augment(config, seed=2, **normal)(images, labels, labels)
        assert torch.equal(mixed, alone)
        assert ((targets.lam >= 0) & (targets.lam <= 1)).all()
        assert mixed.isfinite().all()
