"""Capacity and plans worked by hand, padded and not; dispatch and combine against plain indexing."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from swin_moe.moe.capacity import capacity
from swin_moe.moe.dispatch import DispatchPlan, SoftDispatchPlan, make_plan
from swin_moe.moe.routers.base import SoftRouting, priority_order
from swin_moe.random.keyed import fold_in, sample_keys


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
        # At most: as without the sign, and never more than the tokens that there are to come.
        (-1.25, 18432, 32, 1, 720),
        (-1.25, 10, 4, 2, 6),
        (-0.3, 10, 4, 5, 0),
        (-2.0, 1, 8, 1, 1),  # 2 slots could not both be filled by one token
        (-5.0, 10, 4, 1, 10),  # int(15) = 15
        (5.0, 10, 4, 1, 15),
    ],
)
def test_capacity_by_hand(factor: float, tokens: int, num_experts: int, top_k: int, expected: int) -> None:
    assert capacity(factor, tokens, num_experts, top_k) == expected


def plan_of(
    index: list[list[int]],
    best: list[float],
    num_experts: int,
    *,
    groups: int = 1,
    slots: int,
    prioritized: bool,
    padded: bool = False,
) -> DispatchPlan:
    """Choices of T tokens; only the first choice's score decides about priority, gates may be normalised."""
    expert_index = torch.tensor(index)
    tokens, top_k = expert_index.shape
    return make_plan(
        torch.full(expert_index.shape, 1.0 / top_k),
        expert_index,
        priority_order(groups, top_k, tokens, torch.tensor(best), prioritized=prioritized),
        slots=slots,
        num_experts=num_experts,
        padded=padded,
    ).settled(None)


def rows_of(plan: DispatchPlan) -> list[list[int]]:
    """(T, k) the row of each assignment, N where it was dropped."""
    return plan.row.clamp(max=len(plan.order)).tolist()


def check(
    plan: DispatchPlan, order: list[int], row: list[list[int]], counts: list[int], load: list[int]
) -> None:
    assert plan.order.tolist() == order
    assert rows_of(plan) == row
    assert plan.counts.tolist() == counts
    assert plan.load.tolist() == load
    assert plan.dropped.item() == sum(load) - len(order)
    assert plan.static_count is None


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
    plan = plan_of(CHOICES, GATES, 3, slots=2, prioritized=False)
    rows = [[0, 3], [1, 4], [6, 6], [2, 6], [6, 5]]
    check(plan, [0, 2, 6, 1, 3, 9], rows, counts=[2, 2, 2], load=[5, 3, 2])


def test_priority_order_by_hand() -> None:
    """Tokens by gate: 2 (.9), 3 (.7), 1 and 4 (.6 each, the earlier first), 0 (.5).

    First choices: 2 and 1 fill expert 0, so 4 and 0 are dropped; 3 takes a slot of expert 1. Second choices:
    2 takes the last slot of expert 1, 3 is dropped at expert 0, 1 and 4 fit at expert 2, 0 is dropped.
    """
    plan = plan_of(CHOICES, GATES, 3, slots=2, prioritized=True)
    rows = [[6, 6], [1, 4], [0, 3], [2, 6], [6, 5]]
    check(plan, [4, 2, 6, 5, 3, 9], rows, counts=[2, 2, 2], load=[5, 3, 2])


@pytest.mark.parametrize("prioritized", [False, True])
def test_equal_gates_serve_the_earlier_token(prioritized: bool) -> None:
    plan = plan_of([[0]] * 100, [0.5] * 100, 2, slots=30, prioritized=prioritized)
    check(plan, list(range(30)), [[min(t, 30)] for t in range(100)], counts=[30, 0], load=[100, 0])


@pytest.mark.parametrize("prioritized", [False, True])
def test_groups_decide_on_their_own(prioritized: bool) -> None:
    """Tokens 0 1 2 want experts 1 0 1, tokens 3 4 5 want 1 1 1; two slots an expert and group.

    Expert 0: token 1. Expert 1: 0 and 2 of group 0, then two of group 1: 3 and 4, or by gate 5 and 3. The
    gates of group 1 are all higher, and take nothing from group 0. Rows are sorted by expert, then by group.
    """
    index, gates = [[1], [0], [1], [1], [1], [1]], [0.3, 0.2, 0.1, 0.8, 0.7, 0.9]
    plan = plan_of(index, gates, 2, groups=2, slots=2, prioritized=prioritized)
    if prioritized:
        check(plan, [1, 0, 2, 5, 3], [[1], [0], [2], [4], [5], [3]], counts=[1, 4], load=[1, 5])
    else:
        check(plan, [1, 0, 2, 3, 4], [[1], [0], [2], [3], [4], [5]], counts=[1, 4], load=[1, 5])


def test_dropless_keeps_all_tokens_at_one_expert_and_leaves_the_others_empty() -> None:
    plan = plan_of([[2]] * 4, [0.4, 0.3, 0.2, 0.1], 4, slots=4, prioritized=True)
    check(plan, [0, 1, 2, 3], [[0], [1], [2], [3]], counts=[0, 0, 4, 0], load=[0, 0, 4, 0])


def test_no_slots_drop_everything() -> None:
    plan = plan_of(CHOICES, GATES, 3, slots=0, prioritized=True)
    check(plan, [], [[0, 0]] * 5, counts=[0, 0, 0], load=[5, 3, 2])


def test_a_token_may_have_fewer_choices() -> None:
    """Expert choice: token 0 went to experts 1 and 0, token 1 to none, token 2 to expert 1; 2 experts.

    Assignment 1 is token 0's second choice, 4 token 2's first; 2, 3 and 5 are no choices and fill no slot.
    One token was chosen by nobody.
    """
    plan = plan_of([[1, 0], [2, 2], [1, 2]], [0.0] * 3, 2, slots=2, prioritized=False)
    assert plan.order.tolist() == [1, 0, 4]
    assert rows_of(plan) == [[1, 0], [3, 3], [2, 3]]
    assert (plan.counts.tolist(), plan.load.tolist()) == ([1, 2], [1, 2])
    assert plan.dropped.item() == 1


def test_padded_rows_by_hand() -> None:
    """The plan of test_priority_order_by_hand with 3 slots, so that 6 + 3 + 2 wanted places become 9 rows.

    Tokens by gate: 2 3 1 4 0. Expert 0 serves first choices 2 1 4 (assignments 4 2 8) and drops 0's first and
    3's second; expert 1 has 3's first, then 2's and 0's second (6 5 1); expert 2 has 1's and 4's second (3 9)
    and one row left over, which reads assignment 10 of 10: none.
    """
    plan = plan_of(CHOICES, GATES, 3, slots=3, prioritized=True, padded=True)
    assert plan.order.tolist() == [4, 2, 8, 6, 5, 1, 3, 9, 10]
    assert rows_of(plan) == [[9, 5], [1, 6], [0, 4], [3, 9], [2, 7]]
    assert plan.counts.tolist() == [3, 3, 3]
    assert (plan.load.tolist(), plan.dropped.item()) == ([5, 3, 2], 2)
    assert (plan.static_count, plan.rows_bound) == (3, 9)


def test_padded_groups_by_hand() -> None:
    """Tokens 0 1 want experts 1 0, tokens 2 3 both want 1; one slot: rows (e0 g0) (e0 g1) (e1 g0) (e1 g1)."""
    plan = plan_of([[1], [0], [1], [1]], [0.5] * 4, 2, groups=2, slots=1, prioritized=False, padded=True)
    assert plan.order.tolist() == [1, 4, 0, 2]
    assert rows_of(plan) == [[2], [0], [3], [4]]
    assert plan.counts.tolist() == [2, 2]
    assert (plan.load.tolist(), plan.dropped.item()) == ([1, 3], 1)


def test_rows_bound() -> None:
    """10 assignments: 3 experts of 2 slots have 6 rows, of 4 slots 10; an expert gets no token twice."""
    bounds = {
        slots: plan_of(CHOICES, GATES, 3, slots=slots, prioritized=True).rows_bound for slots in (0, 2, 4)
    }
    assert bounds == {0: 0, 2: 6, 4: 10}
    assert plan_of([[0], [1]], [0.5] * 2, 2, slots=9, prioritized=True).rows_bound == 2


def some_plan(kind: str, *, padded: bool = False) -> DispatchPlan:
    if kind == "drops":  # token 2 loses both choices, others one, token 0 and 1 none
        return plan_of(CHOICES, GATES, 3, slots=2, prioritized=False, padded=padded)
    if kind == "dropless":
        return plan_of(CHOICES, GATES, 3, slots=5, prioritized=True, padded=padded)
    if kind == "one expert":
        return plan_of([[1]] * 5, GATES, 3, groups=5, slots=1, prioritized=True, padded=padded)
    if kind == "fewer choices":
        index = [[1, 0], [3, 3], [1, 3], [2, 0], [3, 3]]
        return plan_of(index, GATES, 3, slots=2, prioritized=False, padded=padded)
    return plan_of(CHOICES, GATES, 3, slots=0, prioritized=True, padded=padded)


KINDS = pytest.mark.parametrize("kind", ["drops", "dropless", "one expert", "fewer choices", "no rows"])
PADDED = pytest.mark.parametrize("padded", [False, True], ids=["exact", "padded"])


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def with_gates(plan: DispatchPlan, gates: Tensor) -> DispatchPlan:
    return replace(plan, gates=gates)


@KINDS
@PADDED
def test_dispatch_and_combine_equal_plain_loops(kind: str, padded: bool) -> None:
    plan = some_plan(kind, padded=padded)
    top_k = plan.row.shape[1]
    tokens, gates = draw(5, 3, seed=0), draw(5, top_k, seed=1)
    rows = plan.dispatch(tokens)
    assert rows.shape == (len(plan.order), 3)
    padding = torch.zeros(3, dtype=torch.float64)
    for place, assignment in enumerate(plan.order.tolist()):
        assert torch.equal(rows[place], tokens[assignment // top_k] if assignment < 5 * top_k else padding)

    rows = draw(len(plan.order), 3, seed=2)
    y = with_gates(plan, gates).combine(rows)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for place, assignment in enumerate(plan.order.tolist()):
        if assignment < 5 * top_k:
            token, choice = divmod(assignment, top_k)
            expected[token] += gates[token, choice].detach() * rows[place].detach()
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)


@KINDS
@PADDED
def test_dispatch_gradcheck(kind: str, padded: bool) -> None:
    plan = some_plan(kind, padded=padded)
    assert torch.autograd.gradcheck(plan.dispatch, (draw(5, 3, seed=0),))


@KINDS
@PADDED
def test_combine_gradcheck(kind: str, padded: bool) -> None:
    plan = some_plan(kind, padded=padded)
    rows, gates = draw(len(plan.order), 3, seed=0), draw(5, plan.row.shape[1], seed=1)
    assert torch.autograd.gradcheck(lambda r, g: with_gates(plan, g).combine(r), (rows, gates))


@KINDS
def test_padded_equals_exact_to_the_bit(kind: str) -> None:
    """Outputs and gradients of tokens and gates, with answers of 7 in the rows of zeros."""
    tokens, gates, scale = draw(5, 3, seed=0), draw(5, some_plan(kind).row.shape[1], seed=1), draw(3, seed=2)
    results = []
    for padded in (False, True):
        plan = with_gates(some_plan(kind, padded=padded), gates)
        y = plan.combine(plan.dispatch(tokens) * scale + 7.0)
        results.append((y, *torch.autograd.grad(y.square().sum(), [tokens, gates]), plan.load, plan.dropped))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@KINDS
def test_dispatch_then_combine_weighs_each_token_by_its_kept_gates(kind: str) -> None:
    plan = some_plan(kind)
    tokens, gates = draw(5, 3, seed=0), draw(5, plan.row.shape[1], seed=1)
    kept = (plan.row < len(plan.order)) * gates
    y = with_gates(plan, gates).combine(plan.dispatch(tokens))
    torch.testing.assert_close(y, tokens * kept.sum(1, keepdim=True), rtol=1e-13, atol=1e-13)


def test_gates_of_dropped_choices_get_no_gradient() -> None:
    """Token 2 loses both choices, token 3 its second and token 4 its first: four zeros, six other numbers."""
    gates = draw(5, 2, seed=1)
    with_gates(some_plan("drops"), gates).combine(draw(6, 3, seed=0)).sum().backward()
    assert (gates.grad == 0).tolist() == [
        [False, False],
        [False, False],
        [True, True],
        [False, True],
        [True, False],
    ]


def test_gates_that_are_not_numbers_reach_the_output_of_dropped_choices_too() -> None:
    gates = torch.full((5, 2), 0.5)
    gates[2, 0] = torch.nan  # token 2 loses both choices
    y = with_gates(some_plan("drops"), gates).combine(torch.ones(6, 3))
    assert y.isnan().all(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("learned", [True, False])
def test_rows_are_saved_for_the_gradient_of_gates_alone(learned: bool) -> None:
    """Gates of the hash and the random router need none: T * k + N + T * k numbers instead of N * C more."""
    plan, saved = some_plan("dropless"), []
    rows = torch.randn(10, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()), lambda x: x):
        with_gates(plan, torch.ones(5, 2, requires_grad=learned)).combine(rows)
    assert sum(saved) == 10 + 10 + 10 + (640 if learned else 0)


@PADDED
def test_keys_of_rows(padded: bool) -> None:
    """Of the token and the number of the choice; those of padding rows are any."""
    plan, keys = some_plan("drops", padded=padded), sample_keys(0, torch.arange(5))
    rows = plan.keys(keys)
    assert len(rows) == len(plan.order)
    for place, assignment in enumerate(plan.order.tolist()):
        if assignment < 10:
            assert rows[place] == fold_in(keys[assignment // 2 : assignment // 2 + 1], assignment % 2)


def soft_plan() -> SoftDispatchPlan:
    """2 images of 3 tokens, 2 experts of 2 slots each."""
    routing = SoftRouting(
        num_experts=2,
        mix_in=draw(2, 3, 4, seed=3),
        mix_out=draw(2, 3, 4, seed=4),
        losses={},
        entropy=torch.zeros(()),
    )
    return routing.plan(groups=2, slots=9, padded=False)


def test_soft_plan_by_plain_loops() -> None:
    """Rows by expert, image, slot: row (e * 2 + b) * 2 + p holds slot 2 * e + p of image b."""
    plan, tokens = soft_plan(), draw(6, 5, seed=0)
    rows = plan.dispatch(tokens)
    y = plan.combine(rows)
    for e, b, p in itertools.product(range(2), range(2), range(2)):
        mixed = sum(plan.mix_in[b, t, 2 * e + p] * tokens[3 * b + t] for t in range(3))
        torch.testing.assert_close(rows[(e * 2 + b) * 2 + p], mixed, rtol=1e-13, atol=1e-13)
    for b, t in itertools.product(range(2), range(3)):
        places = [(2 * e + p, (e * 2 + b) * 2 + p) for e in range(2) for p in range(2)]
        mixed = sum(plan.mix_out[b, t, slot] * rows[row] for slot, row in places)
        torch.testing.assert_close(y[3 * b + t], mixed, rtol=1e-13, atol=1e-13)
    assert plan.counts.tolist() == plan.load.tolist() == [4, 4]
    assert (plan.static_count, plan.rows_bound, plan.dropped.item()) == (4, 8, 0)


def test_soft_plan_keys() -> None:
    keys = sample_keys(0, torch.arange(6))
    rows = soft_plan().keys(keys)
    for e, b, p in itertools.product(range(2), range(2), range(2)):
        assert rows[(e * 2 + b) * 2 + p] == fold_in(keys[3 * b : 3 * b + 1], 2 * e + p)
    assert len(rows.unique()) == 8
