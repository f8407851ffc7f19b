"""Losses of routers against numbers worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from swin_moe.moe.losses import (
    importance_load_loss,
    importance_loss,
    load_balance_loss,
    router_z_loss,
)

BALANCED = ([[0.25] * 4] * 4, [0, 1, 2, 3])
COLLAPSED = ([[0.7, 0.1, 0.1, 0.1]] * 4, [0] * 4)


def gshard(scores: list[list[float]], first: list[int], groups: int = 1) -> float:
    return load_balance_loss(torch.tensor(scores), torch.tensor(first)[:, None], groups).item()


def test_perfect_balance_costs_one() -> None:
    """4 * (4 experts * score 1/4 * share 1/4) = 1."""
    assert gshard(*BALANCED) == 1.0


def test_all_tokens_at_one_expert() -> None:
    """Expert 0 has mean score 0.7 and share 1, the others share 0: 4 * 0.7 = 2.8."""
    assert gshard(*COLLAPSED) == pytest.approx(2.8, rel=1e-6)


def test_an_uneven_case_by_hand() -> None:
    """Two experts, three tokens with scores (.9, .1), (.6, .4), (.3, .7).

    First choices 0, 0, 1: shares 2/3, 1/3. Mean scores 1.8/3 = .6 and 1.2/3 = .4.
    2 * (.6 * 2/3 + .4 * 1/3) = 2 * 1.6/3 = 16/15. The shares have no gradient: d/d score[t, e] is
    2 * share[e] / 3 = 4/9 for expert 0, 2/9 for expert 1.
    """
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], requires_grad=True)
    loss = load_balance_loss(scores, torch.tensor([[0], [0], [1]]), groups=1)
    assert loss.item() == pytest.approx(16 / 15, rel=1e-6)
    (grad,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(grad, torch.tensor([[4 / 9, 2 / 9]]).expand(3, 2))


def test_groups_are_averaged_and_do_not_mix() -> None:
    """A balanced and a collapsed group: (1 + 2.8) / 2 = 1.9.

    As one group of 8 it would be another number: shares (5, 1, 1, 1) / 8, mean scores (.475, .175, .175,
    .175), 4 * (.475 * 5 + .175 * 3) / 8 = 4 * 2.9 / 8 = 1.45.
    """
    both = (BALANCED[0] + COLLAPSED[0], BALANCED[1] + COLLAPSED[1])
    assert gshard(*both, groups=2) == pytest.approx(1.9, rel=1e-6)
    assert gshard(*both, groups=1) == pytest.approx(1.45, rel=1e-6)


def test_only_first_choices_count() -> None:
    scores = torch.tensor(COLLAPSED[0])
    two = load_balance_loss(scores, torch.tensor([[0, 3]] * 4), groups=1)
    assert two.item() == gshard(*COLLAPSED)


# Importance and load. Logits are logarithms of the scores, so that the softmax gives them back.


def logits(scores: list[list[float]]) -> Tensor:
    return torch.tensor(scores, dtype=torch.float64).log().requires_grad_()


def test_importance_by_hand() -> None:
    """Scores (.9, .1), (.6, .4), (.3, .7): importance (1.8, 1.2), mean 1.5, deviations +-.3.

    Population variance (.09 + .09) / 2 = .09, and .09 / 2.25 = .04. Tutel's variance is .18 / 1: .08, less
    the guard of 1e-10.
    """
    case = logits([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    assert importance_loss(case, 1).item() == pytest.approx(0.04, rel=1e-12)
    assert importance_loss(case, 1, tutel=True).item() == pytest.approx(0.18 / (2.25 + 1e-10), rel=1e-12)


def test_importance_of_groups() -> None:
    """Groups of importance (1.8, .2) and (.2, 1.8): each (.8 / 1)^2 = .64; together (2, 2): 0."""
    case = logits([[0.9, 0.1]] * 2 + [[0.1, 0.9]] * 2)
    assert importance_loss(case, 2).item() == pytest.approx(0.64, rel=1e-12)
    assert importance_loss(case, 1).item() == pytest.approx(0.0, abs=1e-12)


def phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def test_load_by_hand() -> None:
    """One token, logits (ln .8, ln .2), threshold ln .8 + .1 (its largest with noise), deviation .5.

    Chances 1 - Phi(.1 / .5) = Phi(-.2) = .42074 and Phi((ln .25 - .1) / .5) = Phi(-2.97259) = .00147647.
    CV^2 of two numbers a, b is ((a - b) / (a + b))^2: (.41926 / .42222)^2 = .98606. Importance (.8, .2):
    (.6)^2 = .36. The mean of the two is .67303.
    """
    case, threshold = logits([[0.8, 0.2]]), torch.tensor([[math.log(0.8) + 0.1]], dtype=torch.float64)
    a, b = phi(-0.2), phi((math.log(0.25) - 0.1) / 0.5)
    assert (a, b) == pytest.approx((0.4207403, 0.0014765), rel=1e-4)
    loss = importance_load_loss(case, threshold, 1, noise_std=0.5)
    assert loss.item() == pytest.approx((0.36 + ((a - b) / (a + b)) ** 2) / 2, rel=1e-12)
    assert loss.item() == pytest.approx(0.67303, abs=1e-5)


def test_load_in_tutels_form_by_hand() -> None:
    """The same token: the scores .8 and .2 stand against the threshold ln .8 + .1 = -.12314.

    Chances Phi(.92314 / .5) = .96759 and Phi(.32314 / .5) = .74097; unbiased CV^2 of two numbers is twice
    ((a - b) / (a + b))^2: 2 * (.22662 / 1.70856)^2 = .035187; importance 2 * .36 = .72; mean .37759.
    """
    case, threshold = logits([[0.8, 0.2]]), torch.tensor([[math.log(0.8) + 0.1]], dtype=torch.float64)
    level = math.log(0.8) + 0.1
    a, b = phi((0.8 - level) / 0.5), phi((0.2 - level) / 0.5)
    loss = importance_load_loss(case, threshold, 1, noise_std=0.5, tutel=True)
    assert loss.item() == pytest.approx((0.72 + 2 * ((a - b) / (a + b)) ** 2) / 2, rel=1e-9)
    assert loss.item() == pytest.approx(0.37759, abs=1e-5)


def test_tutels_load_vanishes_where_v_moes_does_not() -> None:
    """32 experts, all tokens want expert 0 by 4: the thresholds lie far above every probability.

    V-MoE's load is all at one expert: in units of the mean the deviations are 31 once and -1 31 times, and
    (31^2 + 31) / 32 = 31. Tutel's chances are Phi((p - 4) * 32) = 0 for all: no variance, no gradient.
    """
    case = torch.zeros(10, 32, dtype=torch.float64)
    case[:, 0] = 4.0
    case.requires_grad_()
    threshold = torch.full((10, 1), 4.0, dtype=torch.float64)
    for tutel, load in ((False, 31.0), (True, 0.0)):
        loss = 2 * importance_load_loss(case, threshold, 1, noise_std=1 / 32, tutel=tutel)
        importance = importance_loss(case, 1, tutel=tutel)
        assert (loss - importance).item() == pytest.approx(load, abs=1e-9)


@pytest.mark.parametrize("tutel", [False, True])
def test_one_expert_is_balanced(tutel: bool) -> None:
    case = torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
    assert importance_load_loss(case, case, 1, noise_std=1.0, tutel=tutel).item() == 0.0


@pytest.mark.parametrize("tutel", [False, True])
def test_gradcheck(tutel: bool) -> None:
    """Through the threshold too, which is a logit with noise."""
    generator = torch.Generator().manual_seed(1)
    case = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    threshold = torch.randn(6, 1, generator=generator, dtype=torch.float64).requires_grad_()

    def loss(case: Tensor, threshold: Tensor) -> Tensor:
        return importance_load_loss(case, threshold, 2, noise_std=0.7, tutel=tutel) + router_z_loss(case)

    assert torch.autograd.gradcheck(loss, (case, threshold))


def test_z_loss_by_hand() -> None:
    """Logits (ln 2, ln 6) and (0, 0): logsumexp ln 8 and ln 2; (9 + 1) / 2 * ln(2)^2."""
    case = torch.tensor([[2.0, 6.0], [1.0, 1.0]], dtype=torch.float64).log()
    assert router_z_loss(case).item() == pytest.approx(5 * math.log(2) ** 2, rel=1e-12)
