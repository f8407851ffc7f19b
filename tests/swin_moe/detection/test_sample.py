"""The sampler: by plain loops, its draws by image, and that they are uniform."""

import pytest
import torch
from torch import Tensor

from parallel.counter_rng import GAMMA, splitmix64
from swin_moe.detection.sample import sample
from swin_moe.random.keyed import sample_keys

KEYS = sample_keys(3, torch.arange(4000))


def assignments(number: int, seed: int = 0) -> Tensor:
    """About a tenth positives, a fifth ignored, the rest negatives."""
    draws = torch.rand(number, generator=torch.Generator().manual_seed(seed))
    return torch.where(draws < 0.1, (draws * 100).long(), torch.where(draws < 0.3, -2, -1))


def slow_sample(assigned: list[int], valid: list[bool], key: int, count: int, most: int) -> list[int]:
    """Positives, then negatives, of the smallest hashes: SplitMix64's output number i of the state `key`."""

    def hashed(i: int) -> int:
        word = splitmix64((key + i * GAMMA) % 2**64)
        return word - 2**64 if word >= 2**63 else word

    known = [i for i in range(len(assigned)) if valid[i]]
    positives = sorted((i for i in known if assigned[i] >= 0), key=hashed)[:most]
    negatives = sorted((i for i in known if assigned[i] == -1), key=hashed)[: count - len(positives)]
    return sorted(positives) + sorted(negatives)


@pytest.mark.parametrize(
    ("number", "count", "most"),
    [(400, 64, 32), (400, 64, 5), (400, 64, 64), (40, 64, 32), (100, 90, 4), (5, 4, 9), (1, 3, 1), (0, 3, 1)],
)
def test_by_loops(number: int, count: int, most: int) -> None:
    """Also of fewer boxes than samples: places without one come last and have weight 0."""
    assigned = assignments(number)
    valid = torch.arange(number) % 7 != 3
    indices, weight = sample(assigned, valid, KEYS[1], count, most)
    expected = slow_sample(assigned.tolist(), valid.tolist(), int(KEYS[1]), count, most)
    assert indices.shape == weight.shape == (count,)
    assert indices.tolist() == expected + [0] * (count - len(expected))
    assert weight.tolist() == [1.0] * len(expected) + [0.0] * (count - len(expected))
    positives = int((assigned[indices[weight > 0]] >= 0).sum()) if number else 0
    assert positives <= most


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    assigned = torch.stack([assignments(300, seed) for seed in range(5)])
    together = sample(assigned, None, KEYS[:5], 64, 16)
    for image in (0, 3):
        alone = sample(assigned[image], None, KEYS[image], 64, 16)
        assert torch.equal(alone.indices, together.indices[image])
        assert torch.equal(alone.weight, together.weight[image])
    order = torch.tensor([4, 2, 0, 1, 3])
    moved = sample(assigned[order], None, KEYS[:5][order], 64, 16)
    assert torch.equal(moved.indices, together.indices[order])


def test_no_positive_and_no_negative() -> None:
    only_negatives = sample(torch.full((50,), -1), None, KEYS[0], 20, 10)
    assert only_negatives.weight.sum() == 20
    assert len(set(only_negatives.indices.tolist())) == 20
    only_positives = sample(torch.zeros(50, dtype=torch.int64), None, KEYS[0], 20, 10)
    assert only_positives.weight.tolist() == [1.0] * 10 + [0.0] * 10  # no negative takes the place of one
    nothing = sample(torch.full((50,), -2), None, KEYS[0], 20, 10)
    assert nothing.weight.sum() == 0


def test_draws_are_uniform() -> None:
    """Over 4000 images, 12 of 30 positives and 12 of 60 negatives.

    How often a box is drawn has the mean n p and the variance n p (1 - p); the sum of its squares over n
    p (1 - p), with one constraint, has a mean of n - 1 and a standard deviation below sqrt(2 n). The bound is
    five of those. Two boxes are drawn together as often as without replacement: p (12 - 1) / (30 - 1).
    """
    assigned = torch.cat([torch.zeros(30), torch.full((60,), -1), torch.full((10,), -2)]).long()
    images = len(KEYS)
    indices, weight = sample(assigned.expand(images, -1), None, KEYS, 24, 12)
    assert weight.all()
    counts = torch.bincount(indices.flatten(), minlength=100).double()
    for part, drawn in ((counts[:30], 12), (counts[30:90], 12)):
        p = drawn / len(part)
        squares = ((part - images * p) ** 2 / (images * p * (1 - p))).sum()
        assert part.sum() == images * drawn
        assert abs(squares - len(part)) < 5 * (2 * len(part)) ** 0.5
    assert counts[90:].sum() == 0
    both = (indices == 0).any(1) & (indices == 1).any(1)
    expected = 12 / 30 * 11 / 29
    assert both.double().mean().item() == pytest.approx(expected, abs=5 * (expected / images) ** 0.5)
