"""Every router, its plan and its losses against the plain loops of plain_routers.py, in fp64 to 1e-10.

Legend: B images, L tokens an image, C channels, E experts, T = B * L.
"""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from swin_moe.moe.capacity import capacity
from swin_moe.moe.routers import ROUTERS
from swin_moe.moe.routers.base import Router, RoutingRequest
from tests.pairwise import pairwise
from tests.swin_moe.moe.routers.plain_routers import (
    DIM,
    EXPERTS,
    LENGTH,
    SIZE,
    Answer,
    Case,
    answer,
    make_call,
    make_case,
    reference,
)


def gradients(got: Answer, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a random weighting of the outputs plus 3 times every loss."""
    cotangent = torch.randn(got.y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    total = (got.y * cotangent).sum() + 3.0 * sum(got.losses.values())
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


def check_same(got: Answer, wanted: Answer, leaves: list[Tensor], tolerance: float) -> None:
    assert (got.load, got.dropped, set(got.losses)) == (wanted.load, wanted.dropped, set(wanted.losses))
    assert got.entropy == pytest.approx(wanted.entropy, rel=1e-12)
    torch.testing.assert_close(got.y, wanted.y, rtol=tolerance, atol=tolerance)
    for name, loss in wanted.losses.items():
        torch.testing.assert_close(got.losses[name], loss, rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def compare(case: Case, *, factor: float, top_k: int) -> Answer:
    """Against the loops to 1e-10; padded against unpadded to the bit, and gradients to the order of sums."""
    call = make_call(case, factor=factor, top_k=top_k)
    wanted = reference(case, call)
    check_same(answer(case, call), wanted, case.leaves, 1e-10)
    if factor != 0:
        padded = answer(case, call, padded=True)
        assert torch.equal(padded.y, answer(case, call).y)
        check_same(padded, answer(case, call), case.leaves, 1e-13)
    return wanted


FACTORS, NUMBERS = (0.0, 0.5, 1.25, -1.25), (1, 2, 4)
TOP_K = pytest.mark.parametrize("top_k", NUMBERS)
FACTOR = pytest.mark.parametrize("factor", FACTORS)


@pytest.mark.parametrize(
    ("name", "normalize", "prioritized", "factor", "top_k"),
    pairwise(("linear", "sigmoid"), (False, True), (False, True), FACTORS, NUMBERS),
)
def test_token_choice(name: str, normalize: bool, prioritized: bool, factor: float, top_k: int) -> None:
    """10 tokens a group, 4 experts: .5 leaves int(.5 * 3) = 1 slot a choice: 2 * 6 k or more are dropped."""
    case = make_case(name, normalize_gates=normalize, batch_prioritized=prioritized, z_loss_weight=0.1)
    wanted = compare(case, factor=factor, top_k=top_k)
    assert sum(wanted.load) == 2 * SIZE * top_k
    assert wanted.dropped >= 2 * (SIZE - 4) * top_k if factor == 0.5 else factor or wanted.dropped == 0


@FACTOR
def test_cosine(factor: float) -> None:
    compare(make_case("cosine", z_loss_weight=0.1), factor=factor, top_k=2)


@pytest.mark.parametrize(
    ("top_k", "balance", "compat"),
    pairwise(NUMBERS, ("importance_load", "importance", "gshard", "none"), ("none", "tutel")),
)
def test_every_balance_loss(top_k: int, balance: str, compat: str) -> None:
    case = make_case("linear", balance_loss=balance, compat=compat, normalize_gates=True, gate_noise=2.0)
    wanted = compare(case, factor=1.25, top_k=top_k)
    assert set(wanted.losses) == (set() if balance == "none" else {"balance"})


@TOP_K
def test_gshard_of_the_sigmoid_router_normalises_its_scores(top_k: int) -> None:
    compare(make_case("sigmoid", balance_loss="gshard"), factor=1.0, top_k=top_k)


@TOP_K
@pytest.mark.parametrize("factor", [0.3, 0.5, 1.25, 9.0])
def test_expert_choice(factor: float, top_k: int) -> None:
    """Slots of an expert: 0; k of 10; 3 k, above 10 where k = 4; and all 10 tokens. Each one is filled."""
    wanted = compare(make_case("expert_choice", z_loss_weight=0.1), factor=factor, top_k=top_k)
    slots = min(SIZE, capacity(factor, SIZE, EXPERTS, top_k))
    assert wanted.load == [2 * slots] * EXPERTS
    assert wanted.dropped == 2 * SIZE if factor == 0.3 else factor < 9 or wanted.dropped == 0


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_soft(slots: int) -> None:
    compare(make_case("soft", slots_per_expert=slots, z_loss_weight=0.1), factor=1.25, top_k=1)


@pytest.mark.parametrize(("name", "factor", "top_k"), pairwise(("hash", "random"), FACTORS, NUMBERS))
def test_drawn(name: str, factor: float, top_k: int) -> None:
    wanted = compare(make_case(name), factor=factor, top_k=top_k)
    assert wanted.entropy == pytest.approx(math.log(top_k))


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_evaluation_has_no_losses_and_no_noise(name: str) -> None:
    case = make_case(name, z_loss_weight=0.0 if name in ("hash", "random") else 0.1, gate_noise=3.0)
    case.router.eval()
    assert compare(case, factor=1.0, top_k=1).losses == {}


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_one_group_of_everything(name: str) -> None:
    case = make_case(name)
    call = make_call(case, factor=1.25, top_k=1, groups=1)
    check_same(answer(case, call), reference(case, call), case.leaves, 1e-10)


@pytest.mark.parametrize("factor", [1.0, 0.0])
@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_more_experts_than_tokens(name: str, factor: float) -> None:
    """5 tokens, 9 experts: ceil(5 / 9) = 1 slot an expert and choice, or 5 (dropless)."""
    case = make_case(name, images=1, num_experts=9)
    call = make_call(case, factor=factor, top_k=2, groups=1)
    for padded in (False, True):
        check_same(answer(case, call, padded=padded), reference(case, call), case.leaves, 1e-10)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_one_token(name: str) -> None:
    case = make_case(name)
    case.tokens, case.keys = case.tokens[:1].detach().requires_grad_(), case.keys[:1]
    call = RoutingRequest(groups=1, length=1, top_k=2, factor=1.0, slots=1)
    for padded in (False, True):
        check_same(answer(case, call, padded=padded), reference(case, call), case.leaves, 1e-10)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_no_tokens(name: str) -> None:
    """A rank without images still takes part in an evaluation: no group, no row, no crash."""
    case = make_case(name)
    case.router.eval()
    case.tokens, case.keys = case.tokens[:0].detach().requires_grad_(), case.keys[:0]
    for padded in (False, True):
        got = answer(
            case, RoutingRequest(groups=0, length=LENGTH, top_k=2, factor=1.0, slots=3), padded=padded
        )
        assert got.y.shape == (0, DIM)
        assert (got.load, got.dropped, got.entropy) == ([0] * EXPERTS, 0, 0.0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.25, 8.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "expert_choice", "soft"])
def test_nan_reaches_the_output_and_the_plan_stays_valid(
    name: str, factor: float, prioritized: bool, padded: bool
) -> None:
    """Tokens 4 and 9 of the first group are NaN: their outputs are too, dropped or not.

    Nobody else's is, other than the image's where slots mix its tokens.
    """
    case = make_case(name, batch_prioritized=prioritized)
    with torch.no_grad():
        case.tokens[4] = torch.nan
        case.tokens[9, 1] = torch.nan
    call = make_call(case, factor=factor, top_k=2)
    got = answer(case, call, padded=padded)
    bad = list(range(10)) if name == "soft" else [4, 9]
    assert got.y.isnan().any(1).nonzero().flatten().tolist() == bad
    routing = case.router(case.tokens, case.keys, call)
    assert math.isnan(got.entropy)
    assert all(loss.isnan() for loss in routing.losses.values())
    if name != "soft":
        assert ((routing.expert_index >= 0) & (routing.expert_index <= EXPERTS)).all()
        assert name == "expert_choice" or (routing.expert_index < EXPERTS).all()
        assert sorted(routing.priority.flatten().tolist()) == list(range(routing.gates.numel()))


@pytest.mark.parametrize("name", ["linear", "sigmoid", "expert_choice", "hash", "random"])
def test_the_same_bits_run_to_run(name: str) -> None:
    case = make_case(name)
    call = make_call(case, factor=1.0, top_k=2)
    first = answer(case, call)
    torch.manual_seed(99)  # no draw comes from the global generator
    again = answer(case, call)
    assert torch.equal(first.y, again.y)
    for a, b in zip(gradients(first, case.leaves), gradients(again, case.leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"expert_choice"}))
def test_a_plan_never_waits_for_the_device(name: str, padded: bool) -> None:
    """Fake tensors have shapes and no numbers: what needs one raises, as the number of rows does."""
    case = make_case(name)
    call = make_call(case, factor=1.25, top_k=2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        tokens, keys = mode.from_tensor(case.tokens), mode.from_tensor(case.keys)
        router = copy_to_fake(case.router, mode)
        routing = router(tokens, keys, call)
        plan = routing.plan(groups=call.groups, slots=call.slots, padded=padded)
        rows = plan.dispatch(tokens)
        assert len(rows) == plan.rows_bound
        assert plan.keys(keys).shape == rows.shape[:1]
        plan.combine(rows).sum().backward()
        if name != "soft" and not padded:
            with pytest.raises(DataDependentOutputException):
                plan.settled(None)


def copy_to_fake(router: Router, mode: FakeTensorMode) -> Router:
    for name, parameter in list(router.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(router.get_submodule(owner), leaf, torch.nn.Parameter(mode.from_tensor(parameter.detach())))
    for name, buffer in list(router.named_buffers()):
        setattr(router, name, mode.from_tensor(buffer))
    return router


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_half_precision_tokens_get_half_precision_rows_and_answers(name: str, dtype: torch.dtype) -> None:
    """The same as in fp64 but for the rounding of the rows: 8 bits, or 11, of numbers of about 1."""
    case = make_case(name, gate_noise=0.001)
    call = make_call(case, factor=1.25, top_k=2)
    with torch.no_grad():
        case.tokens.copy_(case.tokens.to(dtype))
    expected = case.router(case.tokens, case.keys, call).plan(groups=2, slots=call.slots, padded=False)
    plan = case.router(case.tokens.to(dtype), case.keys, call).plan(groups=2, slots=call.slots, padded=False)
    expected, plan = expected.settled(None), plan.settled(None)
    rows = plan.dispatch(case.tokens.to(dtype))
    y = plan.combine(rows)
    assert rows.dtype == y.dtype == dtype
    wanted = expected.combine(expected.dispatch(case.tokens))
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=0.05)
    y.float().sum().backward()
    assert case.tokens.grad.isfinite().all()
