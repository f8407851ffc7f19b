"""The tables of `plan --search` and `plan --simulate` as lines of text."""

from collections.abc import Sequence

from launcher.plan.search.candidate import Candidate
from launcher.plan.search.simulate import Point
from parallel.experts.placement import ExchangeOptions

GIB = 2**30
HEAD = ("images/s", "GiB", "ep", "slices", "exchange", "ZeRO", "micro", "accum", "recompute")


def search_lines(candidates: Sequence[Candidate], top: int) -> list[str]:
    """The fastest layouts, then what stands in the way of others."""
    fit = [c for c in candidates if c.memory and not c.reason]
    large = [c for c in candidates if c.memory and c.reason]
    forbidden = [c for c in candidates if not c.time]
    slower = len(candidates) - len(fit) - len(large) - len(forbidden)
    lines = [_summary(fit=len(fit), large=len(large), forbidden=len(forbidden), slower=slower)]
    if fit:
        lines += aligned([HEAD, *(_row(c) for c in fit[:top])])
    if large:
        lines += [f"do not fit, the nearest {min(top, len(large))} of {len(large)}:"]
        lines += aligned([(*HEAD, ""), *((*_row(c), c.reason) for c in large[:top])])
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
    """The options of an exchange in a word or two, such as `ep, 2 hops, x4`."""
    hops = ", 2 hops" if exchange.hierarchical else ""
    return f"{exchange.strategy}{hops}" + (f", x{exchange.overlap}" if exchange.overlap > 1 else "")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells, right-aligned in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def simulation_lines(points: Sequence[Point]) -> list[str]:
    """The weak-scaling table, and where something changes."""
    head = f"{'GPUs':>6} {'ep':>4} {'images/s':>10} {'efficiency':>10} {'all-to-all':>10} {'exchange':>12} "
    lines = [head + f"{'MTBF h':>8} {'save every':>10} {'goodput':>8}"]
    for p in points:
        how = "-" if not p.rows_bytes else "hierarchical" if p.two_stages_win else "linear"
        lines.append(
            f"{p.ranks:>6} {p.ep_size:>4} {p.time.images_s:>10.0f} {p.efficiency:>10.1%} "
            f"{p.exchange_share:>10.1%} {how:>12} {p.mtbf_s / 3600:>8.1f} {p.interval_s / 60:>6.0f} min "
            f"{p.goodput:>8.1%}"
        )
    over = next((p.ranks for p in points if p.exchange_wins), None)
    two = next((p.ranks for p in points if p.two_stages_win), None)
    lines.append(
        f"the all-to-all overtakes computing {f'at {over} GPUs' if over else 'nowhere here'}; "
        f"the hierarchical exchange is faster {f'from {two} GPUs on' if two else 'nowhere here'}"
    )
    return lines
