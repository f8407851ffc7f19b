"""Losses against numbers worked by hand."""

import math

import pytest
import torch

from swin_moe.losses import classification_loss, evaluation_sums, load_balance_loss
from swin_moe.router import Routing


def routing(scores: list[list[float]], first: list[int]) -> Routing:
    table = torch.tensor(scores, requires_grad=True)
    index = torch.tensor(first)[:, None]
    return Routing(gates=table.gather(1, index), expert_index=index, scores=table)


BALANCED = ([[0.25] * 4] * 4, [0, 1, 2, 3])
COLLAPSED = ([[0.7, 0.1, 0.1, 0.1]] * 4, [0] * 4)


def test_perfect_balance_costs_one() -> None:
    """4 * (4 experts * score 1/4 * share 1/4) = 1."""
    assert load_balance_loss(routing(*BALANCED), groups=1).item() == 1.0


def test_all_tokens_at_one_expert() -> None:
    """Expert 0 has mean score 0.7 and share 1, the others share 0: 4 * 0.7 = 2.8."""
    assert load_balance_loss(routing(*COLLAPSED), groups=1).item() == pytest.approx(2.8, rel=1e-6)


def test_an_uneven_case_by_hand() -> None:
    """Two experts, three tokens with scores (.9, .1), (.6, .4), (.3, .7).

    First choices 0, 0, 1: shares 2/3, 1/3. Mean scores 1.8/3 = .6 and 1.2/3 = .4.
    2 * (.6 * 2/3 + .4 * 1/3) = 2 * 1.6/3 = 16/15. The shares have no gradient: d/d score[t, e] is
    2 * share[e] / 3 = 4/9 for expert 0, 2/9 for expert 1.
    """
    case = routing([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [0, 0, 1])
    loss = load_balance_loss(case, groups=1)
    assert loss.item() == pytest.approx(16 / 15, rel=1e-6)
    (grad,) = torch.autograd.grad(loss, case.scores)
    torch.testing.assert_close(grad, torch.tensor([[4 / 9, 2 / 9]]).expand(3, 2))


def test_groups_are_averaged_and_do_not_mix() -> None:
    """A balanced and a collapsed group: (1 + 2.8) / 2 = 1.9.

    As one group of 8 it would be another number: shares (5, 1, 1, 1) / 8, mean scores (.475, .175, .175,
    .175), 4 * (.475 * 5 + .175 * 3) / 8 = 4 * 2.9 / 8 = 1.45.
    """
    both = routing(BALANCED[0] + COLLAPSED[0], BALANCED[1] + COLLAPSED[1])
    assert load_balance_loss(both, groups=2).item() == pytest.approx(1.9, rel=1e-6)
    assert load_balance_loss(both, groups=1).item() == pytest.approx(1.45, rel=1e-6)


def test_only_first_choices_count() -> None:
    one = routing(*COLLAPSED)
    two = Routing(gates=one.gates.expand(4, 2), expert_index=torch.tensor([[0, 3]] * 4), scores=one.scores)
    assert load_balance_loss(two, groups=1) == load_balance_loss(one, groups=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smoothed_labels_by_hand(dtype: torch.dtype) -> None:
    """Probabilities (1/2, 1/4, 1/4), label 0, smoothing .3: targets (.8, .1, .1).

    -(.8 ln 1/2 + .1 ln 1/4 + .1 ln 1/4) = (.8 + .2 + .2) ln 2 = 1.2 ln 2. With label 1: targets (.1, .8, .1),
    (.1 + 1.6 + .2) ln 2 = 1.9 ln 2. Their mean is 1.55 ln 2; unsmoothed (1 + 2) / 2 ln 2.
    """
    logits = torch.tensor([[0.5, 0.25, 0.25]] * 2, dtype=dtype).log() + 3.0
    labels = torch.tensor([0, 1])
    smoothed = classification_loss(logits, labels, label_smoothing=0.3)
    assert smoothed.dtype == torch.float32
    assert smoothed.item() == pytest.approx(1.55 * math.log(2), rel=1e-6)
    assert classification_loss(logits, labels).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_half_precision_logits_lose_nothing_more() -> None:
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(8)
    assert classification_loss(logits, labels, 0.1) == classification_loss(logits.float(), labels, 0.1)


def test_evaluation_sums_skip_padding() -> None:
    """Images with probabilities (1/2, 1/4, 1/4): labels 0 (hit, ln 2), 2 (miss, ln 4), and padding.

    Loss ln 2 + 2 ln 2 = 3 ln 2, one hit, weight 2. The padding image would have been a hit with a loss.
    """
    logits = torch.tensor([[0.5, 0.25, 0.25]] * 3).log()
    sums = evaluation_sums(logits, torch.tensor([0, 2, 0]), torch.tensor([1.0, 1.0, 0.0]))
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, torch.tensor([3 * math.log(2), 1, 2]).double(), rtol=1e-6, atol=0)


def test_evaluation_sums_add_up_over_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(10, 4, generator=generator), torch.arange(10) % 4
    weights = torch.tensor([1.0] * 8 + [0.0] * 2)
    pieces = [evaluation_sums(logits[i : i + 5], labels[i : i + 5], weights[i : i + 5]) for i in (0, 5)]
    whole = evaluation_sums(logits[:8], labels[:8], weights[:8])
    torch.testing.assert_close(pieces[0] + pieces[1], whole, rtol=1e-6, atol=0)
    assert whole[2] == 8
