"""What the checks that compare numbers share: a case that raises costs no other; distances; settings."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpu_checks.place import CheckContext, Row, row


def attempt(what: str, work: Callable[[], Row], ok: bool | None = False) -> Row:
    """The row of a case; of one that raises, a row with the error and this verdict."""
    try:
        return work()
    except Exception as error:
        return row(what, ok=ok, raised=f"{type(error).__name__}: {error}"[:300])


def guarded(what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; an error ends these alone, and is a row of its own."""
    try:
        yield from rows
    except Exception as error:
        yield row(what, ok=False, error=f"{type(error).__name__}: {error}"[:400])


def distance(got: Tensor, wanted: Tensor) -> float:
    """The relative error |got - wanted| / |wanted|, in fp64 where `wanted` is; NaN where a number is none."""
    exact = wanted.detach().double()
    difference = got.detach().to(exact.device).double() - exact
    return float(difference.norm() / exact.norm().clamp(min=1e-30))


def not_numbers(tensors: Sequence[Tensor]) -> int:
    """How many elements are NaN or infinite."""
    return sum(int((~x.isfinite()).sum()) for x in tensors)


def as_in_a_run(place: CheckContext) -> None:
    """The settings of `parallel/ranks/gpu.py`, which every process of a run makes."""
    from parallel.ranks import gpu

    if place.on_gpu:
        gpu.use(torch.device("cuda", torch.cuda.current_device()))
