"""k-shot regression and k-NN against other arithmetic, and the draw of the shots."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from launcher.evaluation.features import LabelledFeatures, places
from launcher.evaluation.few_shot import accuracy, draw_shots, fit
from launcher.metrics.neighbours import votes


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [40, 9], ids=["more samples than features", "fewer"])
def test_the_ridge_is_the_least_squares_of_a_longer_system(samples: int) -> None:
    """|X W - Y|^2 + r |W|^2 is |[X; sqrt(r) I] W - [Y; 0]|^2, which lstsq solves by QR."""
    features, labels = random(samples, 12) * 3 + 1, torch.arange(samples) % 4
    ridge = fit(features, labels, 4, regulariser=7.0)
    x = features.double().numpy()
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-5)
    x = torch.from_numpy(np.concatenate([x, np.full((samples, 1), 100.0)], axis=1))
    y = torch.full((samples, 4), -1.0, dtype=torch.float64)
    y[torch.arange(samples), labels] = 1.0
    longer = torch.cat([x, math.sqrt(7.0) * torch.eye(13, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(longer, torch.cat([y, torch.zeros(13, 4).double()])).solution
    torch.testing.assert_close(ridge.weight, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ridge.scores(features), x @ wanted, rtol=1e-9, atol=1e-9)


def test_one_feature_by_hand() -> None:
    """Features 1 and 3: mean 2, deviation 1, so X = [[-1, 100], [1, 100]] nearly; X^T X = diag(2, 20000).

    Y of the second class is [-1, 1]: X^T Y = [2, 0], W = [2 / (2 + 2), 0]. A feature of 5 is 3 deviations
    from the mean: a score of 3 / 2, and -3 / 2 for the first class.
    """
    ridge = fit(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), 2, regulariser=2.0)
    found = ridge.scores(torch.tensor([[5.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1.5, 1.5]]).double(), rtol=1e-4, atol=1e-4)


def test_accuracy_counts_hits() -> None:
    train = LabelledFeatures(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 1, 1]))
    test = LabelledFeatures(torch.tensor([[0.0], [5.0], [4.0]]), torch.tensor([0, 1, 0]))
    assert accuracy(train, test, np.array([0, 1]), 2) == pytest.approx(2 / 3)


def test_the_shots_are_k_of_each_class_by_the_seed() -> None:
    labels = np.array([1, 0, 2, 0, 1, 1, 0, 0, 1, 0])
    found = draw_shots(labels, 4, 3, seed=5)
    assert [labels[i] for i in found] == [0, 0, 0, 1, 1, 1, 2]  # one of class 2, none of class 3
    assert len(set(found.tolist())) == 7
    assert found.tolist() == draw_shots(labels, 4, 3, seed=5).tolist()
    many = np.repeat([0, 1], 50)
    draws = {tuple(draw_shots(many, 2, 5, seed).tolist()) for seed in range(4)}
    assert len(draws) == 4
    assert draw_shots(many, 2, 2, 1).tolist() == [
        i for half in np.split(draw_shots(many, 2, 5, 1), 2) for i in half[:2].tolist()
    ]  # fewer shots are the first of more


def test_votes_by_loops() -> None:
    bank, test, labels = random(30, 6), random(5, 6, seed=1), torch.arange(30) % 4
    found = votes(bank, labels, test, neighbours=7, num_classes=5)
    for row, sample in zip(found, test, strict=True):
        cosines = [float(F.cosine_similarity(sample, other, dim=0)) for other in bank]
        nearest = sorted(range(30), key=lambda i: -cosines[i])[:7]
        wanted = [sum(math.exp(cosines[i] / 0.07) for i in nearest if labels[i] == k) for k in range(5)]
        assert row.tolist() == pytest.approx(wanted, rel=1e-4)


def test_more_neighbours_than_the_bank_has() -> None:
    found = votes(random(3, 2), torch.tensor([0, 1, 1]), random(1, 2, seed=1), neighbours=20, num_classes=2)
    assert (found > 0).all()


def test_places_in_a_permutation() -> None:
    given, wanted = np.array([30, 10, 20]), np.array([10, 30, 20])
    assert given[places(given, wanted)].tolist() == wanted.tolist()
