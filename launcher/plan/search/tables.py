"""The tables of `plan --search` and `plan --simulate` as lines of text."""

from collections.abc import Iterator, Sequence

from launcher.console.columns import aligned
from launcher.plan.search.candidate import Candidate
from launcher.plan.search.report import GIB
from launcher.plan.search.run_cost import Terms, price_per_million, run_cost
from launcher.plan.search.simulate import Point
from parallel.experts.options import ExchangeOptions

HEAD = ("images/s", "GiB", "ep", "slices", "exchange", "ZeRO", "micro", "accum", "recompute")

POINT_HEAD = (
    *("GPUs", "global batch", "ep", "GiB", "images/s", "efficiency", "all-to-all", "exchange"),
    *("MTBF h", "save every", "goodput"),
)


def search_lines(candidates: Sequence[Candidate], terms: Terms, top: int) -> list[str]:
    """The fastest layouts, then what stands in the way of others."""
    fit = [c for c in candidates if c.memory and not c.reason]
    large = [c for c in candidates if c.memory and c.reason]
    forbidden = [c for c in candidates if not c.time]
    slower = len(candidates) - len(fit) - len(large) - len(forbidden)
    lines = [_summary(fit=len(fit), large=len(large), forbidden=len(forbidden), slower=slower)]
    if fit:
        rows = [(*_row(c), *cost_cells(c, terms)) for c in fit[:top]]
        lines += aligned([(*HEAD, *cost_head(terms)), *rows], right=True, indent="  ")
    if large:
        lines += [f"do not fit, the nearest {min(top, len(large))} of {len(large)}:"]
        lines += aligned([(*HEAD, ""), *((*_row(c), c.reason) for c in large[:top])], right=True, indent="  ")
    if forbidden:
        lines += [f"layouts of experts that break a rule, {min(top, len(forbidden))} of {len(forbidden)}:"]
        lines += [f"  ep {c.config.parallel.ep_size}: {c.reason}" for c in forbidden[:top]]
    if fit:
        lines += ["the fastest:", f"  {' '.join(fit[0].overrides)}"]
    return lines


def _summary(*, fit: int, large: int, forbidden: int, slower: int) -> str:
    """How many layouts there are of each kind."""
    counts = {
        "fit": fit,
        "do not fit": large,
        "break a rule": forbidden,
        "are slower, so their memory was not predicted": slower,
    }
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{fit + large + forbidden + slower} layouts, each with its fastest exchange: {kinds}"


def no_layout(candidates: Sequence[Candidate]) -> str:
    """Why a search found nothing, in one line; "" where it found something."""
    if any(c.memory and not c.reason for c in candidates):
        return ""
    large = [c for c in candidates if c.memory]
    if large:
        return f"no layout fits: the nearest {large[0].reason} GiB, with {' '.join(large[0].overrides)}"
    reasons = list(dict.fromkeys(c.reason for c in candidates))
    more = f" (and {len(reasons) - 1} other rules)" if len(reasons) > 1 else ""
    return f"no layout works on {candidates[0].ranks} ranks: {reasons[0]}{more}"


def _row(candidate: Candidate) -> tuple[str, ...]:
    parallel, train = candidate.config.parallel, candidate.config.train
    assert candidate.time is not None
    assert candidate.memory is not None
    return (
        f"{candidate.time.images_s:.0f}",
        f"{candidate.memory.peak_bytes / GIB:.1f}",
        str(parallel.ep_size),
        str(parallel.expert_tensor_parallel_size),
        exchange_text(parallel.expert_exchange) if parallel.ep_size > 1 else "-",
        f"{parallel.zero_stage}{'+host' if parallel.offload_optimizer else ''}",
        str(train.micro_batch_size),
        str(candidate.grad_accum_steps),
        "yes" if candidate.config.model.activation_checkpoint_every else "no",
    )


def exchange_text(exchange: ExchangeOptions) -> str:
    """The options of an exchange in a word or two, such as `linear`, `hierarchical x4` or `dp`."""
    words = [] if exchange.strategy == "ep" else [str(exchange.strategy)]
    words += [] if exchange.strategy == "dp" else ["hierarchical" if exchange.hierarchical else "linear"]
    return " ".join(words + ([f"x{exchange.overlap}"] if exchange.overlap > 1 else []))


def simulation_lines(points: Sequence[Point], terms: Terms) -> list[str]:
    """The weak-scaling table, and where something changes."""
    head = (*POINT_HEAD, *cost_head(terms))
    rows = [(*_point_cells(point), *cost_cells(point.candidate, terms)) for point in points]
    return [*aligned([head, *rows], right=True, indent="  "), *_simulation_notes(points)]


def _point_cells(point: Point) -> tuple[str, ...]:
    memory, exchange = point.candidate.memory, point.candidate.config.parallel.expert_exchange
    assert memory is not None
    return (
        str(point.ranks),
        str(point.candidate.config.train.global_batch_size),
        str(point.ep_size),
        f"{memory.peak_bytes / GIB:.1f}{'!' if point.candidate.reason else ''}",
        f"{point.time.images_s:.0f}",
        f"{point.efficiency:.1%}",
        f"{point.exchange_share:.1%}",
        exchange_text(exchange) if point.ep_size > 1 else "-",
        f"{point.mtbf_s / 3600:.1f}",
        f"{point.interval_s / 60:.0f} min",
        f"{point.goodput:.1%}",
    )


def _simulation_notes(points: Sequence[Point]) -> Iterator[str]:
    """What the table does not say by itself."""
    first, fastest = points[0], max(points, key=lambda point: point.efficiency)
    if fastest.efficiency > 1.005:
        why = f"on {first.ranks} GPUs a rank works more for its images than on {fastest.ranks}"
        if first.experts_held > fastest.experts_held:
            why += f": it holds {first.experts_held} experts of a layer, not {fastest.experts_held}"
        yield f"efficiency compares with the first row and passes 100 % because {why}"
    if large := [str(point.ranks) for point in points if point.candidate.reason]:
        yield f"! does not fit in memory: {', '.join(large)} GPUs"
    over = next((point.ranks for point in points if point.exchange_wins), None)
    yield f"the all-to-all takes longer than compute {f'from {over} GPUs on' if over else 'on none of them'}"
    gaining = [point for point in points if point.hops_gain > 0]
    if gaining:
        other = not gaining[0].candidate.config.parallel.expert_exchange.hierarchical
        gains = ", ".join(f"{point.hops_gain:+.0%} on {point.ranks}" for point in gaining)
        yield f"parallel.expert_exchange.hierarchical={str(other).lower()} would be faster: {gains} GPUs"


def cost_head(terms: Terms) -> tuple[str, ...]:
    """Names of the columns of `cost_cells`."""
    priced = terms.price_per_gpu_hour is not None
    run = ("hours", "GPU-hours") if terms.epoch_images else ()
    return (*run, *(("price" if run else "price/M",) if priced else ()))


def cost_cells(candidate: Candidate, terms: Terms) -> tuple[str, ...]:
    """Hours, GPU-hours and price of the run; the price of a million images where its length is not known."""
    cost, million = run_cost(candidate, terms), price_per_million(candidate, terms)
    if terms.epoch_images and cost is not None:
        run = (f"{cost.hours:.1f}", f"{cost.gpu_hours:.0f}")
        return run if cost.price is None else (*run, f"{cost.price:,.0f}")
    return () if million is None else (f"{million:.2f}",)
