"""Capacity and plans worked by hand; dispatch and combine against plain indexing."""

import pytest
import torch
from torch import Tensor

from swin_moe.dispatch import Plan, capacity, combine, dispatch, make_plan
from swin_moe.router import Routing


@pytest.mark.parametrize(
    ("factor", "tokens", "num_experts", "top_k", "expected"),
    [
        (1.25, 18432, 32, 1, 720),  # Swin-MoE-S, stage 3, batch 128: 18432 / 32 = 576, * 1.25
        (1.25, 10, 4, 1, 3),  # ceil(2.5) = 3, int(3.75) = 3
        (1.25, 10, 4, 2, 6),  # the rounding comes before top_k: 2 * 3, and not int(2 * 3.75) = 7
        (1.0, 10, 4, 3, 9),
        (0.5, 10, 4, 1, 1),  # int(1.5)
        (0.3, 10, 4, 5, 0),  # int(0.9) = 0 slots: everything is dropped
        (2.0, 1, 8, 1, 2),  # ceil(1 / 8) = 1
        (0, 10, 4, 3, 10),  # dropless: a token chooses an expert once, so the tokens are enough
        (0.0, 7, 1, 1, 7),
    ],
)
def test_capacity_by_hand(factor: float, tokens: int, num_experts: int, top_k: int, expected: int) -> None:
    assert capacity(factor, tokens, num_experts, top_k) == expected


def routing(index: list[list[int]], best: list[float], num_experts: int) -> Routing:
    """Choices of T tokens; only the first choice's score decides about priority, gates may be normalised."""
    expert_index = torch.tensor(index)
    scores = torch.zeros(len(index), num_experts).scatter_(
        1, expert_index[:, :1], torch.tensor(best)[:, None]
    )
    gates = torch.full(expert_index.shape, 1.0 / expert_index.shape[1])
    return Routing(gates=gates, expert_index=expert_index, scores=scores)


def check(plan: Plan, order: list[int], row: list[list[int]], counts: list[int], load: list[int]) -> None:
    assert plan.order.tolist() == order
    assert plan.row.tolist() == row
    assert plan.counts.tolist() == counts
    assert plan.load.tolist() == load


# Five tokens, two choices each, three experts of two slots. Assignments are numbered 2 * token + choice.
# Wanted: expert 0 by tokens 0 1 2 4 first and 3 second; 1 by 3 first and 0 2 second; 2 by 1 4 second.
CHOICES = [[0, 1], [0, 2], [0, 1], [1, 0], [0, 2]]
GATES = [0.5, 0.6, 0.9, 0.7, 0.6]


def test_position_order_by_hand() -> None:
    """First choices: 0 and 1 fill expert 0, so 2 and 4 are dropped; 3 takes a slot of expert 1.

    Second choices: 0 takes the last slot of expert 1, so 2 is dropped; 3 is dropped at the full expert 0;
    1 and 4 fit at expert 2. Rows: expert 0 serves assignments 0 2, expert 1 6 1, expert 2 3 9. Token 3's
    first choice is served before token 0's second one: choices are the outer loop.
    """
    plan = make_plan(routing(CHOICES, GATES, 3), groups=1, slots=2, prioritized=False)
    rows = [[0, 3], [1, 4], [6, 6], [2, 6], [6, 5]]
    check(plan, [0, 2, 6, 1, 3, 9], rows, counts=[2, 2, 2], load=[5, 3, 2])


def test_priority_order_by_hand() -> None:
    """Tokens by gate: 2 (.9), 3 (.7), 1 and 4 (.6 each, the earlier first), 0 (.5).

    First choices: 2 and 1 fill expert 0, so 4 and 0 are dropped; 3 takes a slot of expert 1. Second choices:
    2 takes the last slot of expert 1, 3 is dropped at expert 0, 1 and 4 fit at expert 2, 0 is dropped.
    """
    plan = make_plan(routing(CHOICES, GATES, 3), groups=1, slots=2, prioritized=True)
    rows = [[6, 6], [1, 4], [0, 3], [2, 6], [6, 5]]
    check(plan, [4, 2, 6, 5, 3, 9], rows, counts=[2, 2, 2], load=[5, 3, 2])


@pytest.mark.parametrize("prioritized", [False, True])
def test_equal_gates_serve_the_earlier_token(prioritized: bool) -> None:
    plan = make_plan(routing([[0]] * 100, [0.5] * 100, 2), groups=1, slots=30, prioritized=prioritized)
    check(plan, list(range(30)), [[min(t, 30)] for t in range(100)], counts=[30, 0], load=[100, 0])


@pytest.mark.parametrize("prioritized", [False, True])
def test_groups_decide_on_their_own(prioritized: bool) -> None:
    """Tokens 0 1 2 want experts 1 0 1, tokens 3 4 5 want 1 1 1; two slots an expert and group.

    Expert 0: token 1. Expert 1: 0 and 2 of group 0, then two of group 1: 3 and 4, or by gate 5 and 3. The
    gates of group 1 are all higher, and take nothing from group 0. Rows are sorted by expert, then by group.
    """
    case = routing([[1], [0], [1], [1], [1], [1]], [0.3, 0.2, 0.1, 0.8, 0.7, 0.9], 2)
    plan = make_plan(case, groups=2, slots=2, prioritized=prioritized)
    if prioritized:
        check(plan, [1, 0, 2, 5, 3], [[1], [0], [2], [4], [5], [3]], counts=[1, 4], load=[1, 5])
    else:
        check(plan, [1, 0, 2, 3, 4], [[1], [0], [2], [3], [4], [5]], counts=[1, 4], load=[1, 5])


def test_dropless_keeps_all_tokens_at_one_expert_and_leaves_the_others_empty() -> None:
    plan = make_plan(routing([[2]] * 4, [0.4, 0.3, 0.2, 0.1], 4), groups=1, slots=4, prioritized=True)
    check(plan, [0, 1, 2, 3], [[0], [1], [2], [3]], counts=[0, 0, 4, 0], load=[0, 0, 4, 0])


def test_no_slots_drop_everything() -> None:
    plan = make_plan(routing(CHOICES, GATES, 3), groups=1, slots=0, prioritized=True)
    check(plan, [], [[0, 0]] * 5, counts=[0, 0, 0], load=[5, 3, 2])


def some_plan(kind: str) -> Plan:
    if kind == "drops":  # token 2 loses both choices, others one, token 0 and 1 none
        return make_plan(routing(CHOICES, GATES, 3), groups=1, slots=2, prioritized=False)
    if kind == "dropless":
        return make_plan(routing(CHOICES, GATES, 3), groups=1, slots=5, prioritized=True)
    if kind == "one expert":
        return make_plan(routing([[1]] * 5, GATES, 3), groups=5, slots=1, prioritized=True)
    return make_plan(routing(CHOICES, GATES, 3), groups=1, slots=0, prioritized=True)


KINDS = ["drops", "dropless", "one expert", "no rows"]


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_dispatch_and_combine_equal_plain_loops(kind: str) -> None:
    plan = some_plan(kind)
    top_k = plan.row.shape[1]
    tokens, gates = draw(5, 3, seed=0), draw(5, top_k, seed=1)
    rows = dispatch(tokens, plan)
    assert rows.shape == (len(plan.order), 3)
    for place, assignment in enumerate(plan.order.tolist()):
        assert torch.equal(rows[place], tokens[assignment // top_k])

    rows = draw(len(plan.order), 3, seed=2)
    y = combine(rows, gates, plan)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for place, assignment in enumerate(plan.order.tolist()):
        token, choice = divmod(assignment, top_k)
        expected[token] += gates[token, choice].detach() * rows[place].detach()
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_dispatch_gradcheck(kind: str) -> None:
    plan = some_plan(kind)
    assert torch.autograd.gradcheck(lambda tokens: dispatch(tokens, plan), (draw(5, 3, seed=0),))


@pytest.mark.parametrize("kind", KINDS)
def test_combine_gradcheck(kind: str) -> None:
    plan = some_plan(kind)
    rows, gates = draw(len(plan.order), 3, seed=0), draw(5, plan.row.shape[1], seed=1)
    assert torch.autograd.gradcheck(lambda r, g: combine(r, g, plan), (rows, gates))


@pytest.mark.parametrize("kind", KINDS)
def test_dispatch_then_combine_weighs_each_token_by_its_kept_gates(kind: str) -> None:
    plan = some_plan(kind)
    tokens, gates = draw(5, 3, seed=0), draw(5, plan.row.shape[1], seed=1)
    kept = (plan.row < len(plan.order)) * gates
    y = combine(dispatch(tokens, plan), gates, plan)
    torch.testing.assert_close(y, tokens * kept.sum(1, keepdim=True), rtol=1e-13, atol=1e-13)


def test_gates_of_dropped_choices_get_no_gradient() -> None:
    """Token 2 loses both choices, token 3 its second and token 4 its first: four zeros, six other numbers."""
    plan = some_plan("drops")
    gates = draw(5, 2, seed=1)
    combine(draw(6, 3, seed=0), gates, plan).sum().backward()
    assert (gates.grad == 0).tolist() == [
        [False, False],
        [False, False],
        [True, True],
        [False, True],
        [True, False],
    ]
