"""What the checks that compare numbers share: a case that raises costs no other; distances; settings."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpu_checks.place import Place, Row, row


def attempt(what: str, work: Callable[[], Row], ok: bool | None = False) -> Row:
    """The row of a case; of one that raises, a row with the error and this verdict."""
    try:
        return work()
    except Exception as error:
        return row(what, ok=ok, raised=f"{type(error).__name__}: {error}"[:300])


def distance(got: Tensor, wanted: Tensor) -> float:
    """The relative error |got - wanted| / |wanted|, in fp64 where `wanted` is; NaN where a number is none."""
    exact = wanted.detach().double()
    difference = got.detach().to(exact.device).double() - exact
    return float(difference.norm() / exact.norm().clamp(min=1e-30))


def not_numbers(tensors: Sequence[Tensor]) -> int:
    """How many elements are NaN or infinite."""
    return sum(int((~x.isfinite()).sum()) for x in tensors)


def peak_gb(place: Place, work: Callable[[], object]) -> float:
    """GB of device memory that `work` takes at most, besides what is there before; 0 on a CPU."""
    if not place.on_gpu:
        work()
        return 0.0
    place.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    place.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def as_in_a_run(place: Place) -> None:
    """The settings of `parallel/ranks/gpu.py`, which every process of a run makes."""
    from parallel.ranks import gpu

    if place.on_gpu:
        gpu.use(torch.device("cuda", torch.cuda.current_device()))
