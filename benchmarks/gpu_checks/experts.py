"""The experts' products: grouped and one after the other, against fp64; what each costs.

Legend: M rows, L experts, C channels, H hidden channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_checks.cases import as_in_a_run, attempt, distance, not_numbers
from gpu_checks.place import CheckContext, Row, row
from swin_moe.moe.grouped_gemm import ACTIVATIONS, ExpertCall, grouped, has_grouped_products, loop
from swin_moe.random.keyed import keep_mask, sample_keys

EXPERTS = (8, 32, 128, 1)  # L
WAYS: dict[str, Callable[..., Tensor]] = {"grouped": grouped, "loop": loop}
PLAIN: dict[str, Any] = {"activation": "gelu", "rate": 0.1, "recompute": False, "fc2_bias": True}
OTHERS = (
    {"rate": 0.0},
    {"fc2_bias": False},
    {"recompute": True},
    {"activation": "swiglu"},
    {"activation": "swiglu", "recompute": True, "rate": 0.0},
)


@dataclass(frozen=True, kw_only=True)
class ExpertCase:
    """One call: who gets how many rows, and what is computed; rows beyond the counts only pad."""

    name: str
    counts: list[int]
    padding: int = 0
    options: dict[str, Any]

    @property
    def rows(self) -> int:
        """M."""
        return sum(self.counts) + self.padding

    @property
    def sizes(self) -> list[int]:
        """Rows that each expert computes: those that pad are the last one's."""
        return [*self.counts[:-1], self.counts[-1] + self.padding]


def products(place: CheckContext) -> Iterator[Row]:
    """Which way a run takes here, then both against fp64, then their times."""
    as_in_a_run(place)
    sizes = (16, 32) if place.rehearsal else (192, 768)
    yield taken(place, *sizes)
    for case in cases(place):
        for way in WAYS:
            yield attempt(f"{way}, {case.name}", lambda: compared(place, case, way, torch.bfloat16, *sizes))  # noqa: B023
    case = ExpertCase(name="L 8, uneven", counts=odd(8), options=PLAIN)
    for dtype in (torch.float32, torch.float16):
        yield attempt(f"loop, {case.name}, {dtype}", lambda: compared(place, case, "loop", dtype, *sizes))  # noqa: B023
    yield from costs(place)


def taken(place: CheckContext, channels: int, hidden: int) -> Row:
    """Whether a run takes the grouped products: in bf16 on sm90 and sm100."""
    rows = torch.ones(8, channels, dtype=torch.bfloat16, device=place.device)
    capability = torch.cuda.get_device_capability(place.device) if place.on_gpu else None
    wanted = capability is not None and capability[0] in (9, 10)
    found = has_grouped_products(rows, hidden)
    return row("the way that a run takes", ok=found == wanted, grouped=found, capability=str(capability))


def odd(experts: int) -> list[int]:
    """Numbers of rows that are no multiples of 8, and differ; some are 0."""
    return [(37 * e + 13) % 101 * (e % 5 != 3) for e in range(experts)]


def cases(place: CheckContext) -> Iterator[ExpertCase]:
    """The numbers of rows that a product may stumble over, for each L; then other options at L = 8."""
    for experts in (3, 1) if place.rehearsal else EXPERTS:
        zeros = [0] * (experts - 1)
        patterns = {
            "even": [64] * experts,
            "uneven": odd(experts),
            "one row each": [1] * experts,
            "all in the first": [333, *zeros],
            "all in the last": [*zeros, 333],
            "every other is empty": [(e % 2) * 48 for e in range(experts)],
        }
        for name, counts in patterns.items():
            if sum(counts):
                yield ExpertCase(name=f"L {experts}, {name}", counts=counts, options=PLAIN)
        yield ExpertCase(name=f"L {experts}, padded", counts=odd(experts), padding=29, options=PLAIN)
        empty = ExpertCase(
            name=f"L {experts}, rows that pad alone", counts=[0] * experts, padding=16, options=PLAIN
        )
        yield empty
    for changes in OTHERS:
        name = ", ".join(f"{key} {value}" for key, value in changes.items())
        yield ExpertCase(name=f"L 8, {name}", counts=odd(8), options=PLAIN | changes)


def drawn(
    case: ExpertCase, dtype: torch.dtype, channels: int, hidden: int, device: torch.device
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Rows, their keys, weights as `ExpertMLP.weights` orders them, and a cotangent."""
    generator = torch.Generator(device).manual_seed(case.rows)
    experts = len(case.counts)

    def draw(*size: int, by: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator, device=device) * by).to(dtype)

    first = [draw(experts, channels, hidden, by=channels**-0.5), draw(experts, hidden)]
    if case.options["activation"] == "swiglu":
        first += [draw(experts, channels, hidden, by=channels**-0.5), draw(experts, hidden)]
    last = [draw(experts, hidden, channels, by=hidden**-0.5), draw(experts, channels)]
    weights = [*first, *last[: 1 + case.options["fc2_bias"]]]
    keys = sample_keys(3, torch.arange(case.rows, device=device))
    return draw(case.rows, channels), keys, weights, draw(case.rows, channels)


def run(
    way: str, case: ExpertCase, counts: list[int] | Tensor, rows: Tensor, keys: Tensor, weights: list[Tensor]
) -> Tensor:
    """One pass through the experts."""
    options = case.options
    call = ExpertCall(
        counts=counts,
        activation=ACTIVATIONS[options["activation"]],
        rate=options["rate"],
        hidden=range(weights[0].shape[2]),
        outputs=range(rows.shape[1]),
        recompute=options["recompute"],
        backward=rows.requires_grad,
    )
    return WAYS[way](call, rows, keys if options["rate"] else None, weights)


def exact(case: ExpertCase, rows: Tensor, keys: Tensor, weights: list[Tensor]) -> Tensor:
    """The same in fp64, expert by expert, in the words of the definition."""
    options, answers = case.options, []
    hidden = weights[0].shape[2]
    keep = keep_mask(keys, hidden, options["rate"]).double() / (1 - options["rate"])
    for e, (x, kept) in enumerate(zip(rows.split(case.sizes), keep.split(case.sizes), strict=True)):
        inner = x @ weights[0][e] + weights[1][e]
        if options["activation"] == "swiglu":
            inner, last = inner * F.silu(x @ weights[2][e] + weights[3][e]), weights[4:]
        else:
            inner, last = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), weights[2:]
        answer = (inner * kept) @ last[0][e]
        answers.append(answer + last[1][e] if options["fc2_bias"] else answer)
    return torch.cat(answers)


def compared(
    place: CheckContext, case: ExpertCase, way: str, dtype: torch.dtype, channels: int, hidden: int
) -> Row:
    """Answer and all gradients against fp64; those of experts without rows must be zero to the bit."""
    rows, keys, weights, cotangent = drawn(case, dtype, channels, hidden, place.device)
    leaves = [x.double().requires_grad_() for x in (rows, *weights)]
    answer = exact(case, leaves[0], keys, leaves[1:])
    wanted = [answer, *torch.autograd.grad(answer, leaves, cotangent.double())]
    place.poison(1.0)
    counts = torch.tensor(case.counts, device=place.device) if way == "grouped" else case.counts
    leaves = [x.requires_grad_() for x in (rows, *weights)]
    y = run(way, case, counts, leaves[0], keys, leaves[1:])
    got = [y, *torch.autograd.grad(y, leaves, cotangent)]
    errors = [distance(x, z) for x, z in zip(got, wanted, strict=True)]
    without_rows = torch.tensor([size == 0 for size in case.sizes], device=place.device)
    left_over = sum(int(x[without_rows].count_nonzero()) for x in got[2:])
    bad = not_numbers(got)
    bound = 5 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    return row(
        f"{way}, {case.name}, {str(dtype).removeprefix('torch.')}",
        ok=max(errors) <= bound and bad == left_over == 0,
        rows=case.rows,
        out=errors[0],
        rows_gradient=errors[1],
        worst_weight_gradient=max(errors[2:]),
        bound=bound,
        not_numbers=bad,
        not_zero_of_empty=left_over,
    )


def costs(place: CheckContext) -> Iterator[Row]:
    """Milliseconds of both ways at the size of stage 3 of Swin-MoE-S, for each L; where they cross."""
    total, channels, hidden = (64, 16, 32) if place.rehearsal else (18_432, 384, 1536)
    faster = []
    for experts in (1, 2) if place.rehearsal else sorted(EXPERTS):
        case = ExpertCase(
            name=f"L {experts}", counts=[total // experts] * experts, options=PLAIN | {"rate": 0.0}
        )
        rows: dict[str, Row] = {}
        for way in WAYS:
            name = f"cost of {way}, {case.name}"
            rows[way] = attempt(name, lambda: cost(place, case, way, channels, hidden, name))  # noqa: B023
            yield rows[way]
        if all("step_ms" in found for found in rows.values()):
            faster += [experts] * (rows["grouped"]["step_ms"] < rows["loop"]["step_ms"])
    yield row("L from which grouped products are faster", experts=min(faster, default=None))


def cost(place: CheckContext, case: ExpertCase, way: str, channels: int, hidden: int, name: str) -> Row:
    """Forward alone, and forward with backward, without dropout."""
    rows, keys, weights, cotangent = drawn(case, torch.bfloat16, channels, hidden, place.device)
    counts = torch.tensor(case.counts, device=place.device) if way == "grouped" else case.counts
    leaves = [x.requires_grad_() for x in (rows, *weights)]

    def forward() -> Tensor:
        return run(way, case, counts, leaves[0], keys, leaves[1:])

    forward_ms = place.milliseconds(forward)
    step_ms = place.milliseconds(lambda: torch.autograd.grad(forward(), leaves, cotangent))
    tflops = 12 * case.rows * channels * hidden / step_ms / 1e9
    return row(name, rows=case.rows, forward_ms=forward_ms, step_ms=step_ms, tflops=tflops)
