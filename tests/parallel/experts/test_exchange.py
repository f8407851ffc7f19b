"""Every way of bringing rows and experts together gives the numbers of a plain loop on one process."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from parallel.experts.exchange import ExchangeOptions, ExpertExchange
from parallel.experts.placement import ExpertParallel
from parallel.ranks.collectives import AsyncAllToAll
from parallel.ranks.mesh import LayoutError
from tests.distributed import run_on_ranks
from tests.parallel.experts.exchanging import (
    C,
    Case,
    Layout,
    compute,
    count,
    held_weights,
    pull,
    rows_of,
    run,
    run_case,
    whole_weights,
)
from tests.parallel.training import replaced

LAYOUTS = [
    Layout(world=1, ep=1, experts=3),
    Layout(world=2, ep=2, experts=3, ranks_per_node=2),  # uneven: 1 and 2 experts; one node
    Layout(world=2, ep=2, experts=2, slices=2, ranks_per_node=1),
    Layout(world=2, ep=1, experts=2),
    Layout(world=3, ep=3, experts=4),
    Layout(world=3, ep=3, experts=2, slices=3),
    Layout(world=4, ep=4, experts=6, ranks_per_node=2, degrees=(2,)),  # nodes [0 1] [2 3]
    Layout(world=4, ep=4, experts=3, slices=2, ranks_per_node=2),
    Layout(world=4, ep=4, experts=2, slices=4, ranks_per_node=2, degrees=(2,)),
    Layout(world=4, ep=2, experts=3, slices=2, ranks_per_node=2),
    Layout(world=4, ep=4, experts=4, ranks_per_node=2, degrees=(2,)),
]


def cases(layout: Layout) -> list[Case]:
    strategies = ["ep", "dp", "auto", *layout.degrees]
    hierarchies = [False] if layout.ranks_per_node is None else [False, True]
    found = [
        Case(options=ExchangeOptions(strategy=s, hierarchical=h, overlap=m))
        for s, h, m in itertools.product(strategies, hierarchies, (1, 2, 4))
    ]
    last = ExchangeOptions(hierarchical=hierarchies[-1], overlap=2)
    found += [Case(options=last, counts=kind) for kind in ("idle ranks", "one expert", "nothing")]
    found += [Case(options=last, keyed=False), Case(options=last, dtype=torch.float32)]
    padded = [
        ExchangeOptions(strategy=s, padded=True, hierarchical=hierarchies[-1], overlap=m)
        for s, m in itertools.product(strategies, (1, 2))
    ]
    return found + [Case(options=o, counts="even", static=True) for o in padded]


def run_all(layouts: list[Layout]) -> list[list[tuple[float, int]]]:
    """Deviation and rows received of every case, one after another through the same exchange."""
    found = []
    for layout in layouts:
        exchange = ExpertExchange(layout.placement())
        found.append([run_case(exchange, layout, case, dist.get_rank()) for case in cases(layout)])
    return found


@pytest.mark.parametrize("world", [1, 2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_every_way_gives_the_numbers_of_one_process(world: int) -> None:
    layouts = [layout for layout in LAYOUTS if layout.world == world]
    by_rank = run_on_ranks(run_all, world, layouts, timeout_s=300)
    for number, layout in enumerate(layouts):
        for i, case in enumerate(cases(layout)):
            deviation = max(found[number][i][0] for found in by_rank)
            assert deviation < (1e-5 if case.dtype == torch.float32 else 1e-10), (layout, case, deviation)
            received = sum(found[number][i][1] for found in by_rank)
            rows = sum(count(case.counts, r, e) for r in range(world) for e in range(layout.experts))
            if case.options.strategy == "dp":
                assert received == rows
            if case.options.strategy == "ep":  # every slice of an expert computes every row
                assert received == rows * layout.slices, (layout, case)


# --- what an option does besides changing nothing

PAIR = Layout(world=2, ep=2, experts=2)


def call(
    exchange: ExpertExchange, layout: Layout, options: ExchangeOptions, **changes: object
) -> torch.Tensor:
    """One forward pass of this rank's rows of `uneven` counts."""
    rank = dist.get_rank()
    numbers = [count("uneven", rank, expert) for expert in range(layout.experts)]
    weights = held_weights(whole_weights(layout.experts, torch.float64), exchange.placement)
    rows = rows_of(rank, sum(numbers), torch.float64).requires_grad_()
    arguments = {"compute": compute, "rows_bound": 100, "options": options, "counts": torch.tensor(numbers)}
    out, _ = run(exchange, **(arguments | {"weights": weights, "rows": rows} | changes))  # type: ignore[arg-type]
    return out


def rounded_on_the_wire() -> tuple[float, float]:
    exchange = ExpertExchange(PAIR.placement())
    options = ExchangeOptions(communication_dtype="bf16", overlap=2)
    single = Case(options=options, dtype=torch.float32)
    return (
        run_case(exchange, PAIR, single, dist.get_rank())[0],
        run_case(exchange, PAIR, Case(options=options), dist.get_rank())[0],
    )


def test_bf16_rounds_fp32_rows_on_the_wire_and_nothing_else() -> None:
    for single, double in run_on_ranks(rounded_on_the_wire, 2):
        assert 1e-4 < single < 2e-2  # 8 bits of mantissa; keys that were rounded would give another mask
        assert double < 1e-10


def log_of_events(layout: Layout, options: ExchangeOptions) -> tuple[list[str], list[str]]:
    """What is sent, received and computed in forward, and in backward."""
    events: list[str] = []
    send, receive = AsyncAllToAll.send, AsyncAllToAll.receive

    def logged_send(self: AsyncAllToAll, rows: torch.Tensor, *, reverse: bool) -> torch.Tensor:
        events.append("send")
        return send(self, rows, reverse=reverse)

    def logged_receive(self: AsyncAllToAll) -> torch.Tensor:
        events.append("receive")
        return receive(self)

    def logged_compute(weights, rows, counts, keys, part):  # type: ignore[no-untyped-def]
        events.append("compute")
        out = compute(weights, rows, counts, keys, part)
        out.register_hook(lambda gradient: events.append("compute"))
        return out

    exchange = ExpertExchange(layout.placement())
    static = torch.full((layout.experts,), 4)
    rows = rows_of(dist.get_rank(), 4 * layout.experts, torch.float64).requires_grad_()
    with (
        replaced(AsyncAllToAll, "send", logged_send),
        replaced(AsyncAllToAll, "receive", logged_receive),
    ):
        out = call(
            exchange, layout, options, compute=logged_compute, rows=rows, counts=static, static_count=4
        )
        forward = events.copy()
        events.clear()
        out.sum().backward()
    return forward, events


def test_one_chunk_is_in_flight_while_another_is_computed() -> None:
    alone, both = ExchangeOptions(), ExchangeOptions(overlap=2)
    for forward, backward in run_on_ranks(log_of_events, 2, PAIR, alone):
        # out and back; no counts travel, since they are known
        assert forward == backward == ["send", "receive", "compute", "send", "receive"]
    for forward, backward in run_on_ranks(log_of_events, 2, PAIR, both):
        # chunk 1 is sent before chunk 0 is computed; chunk 0 comes back while chunk 1 is computed
        middle = ["receive", "compute", "send"]
        assert forward == ["send", "send", *middle, *middle, "receive", "receive"]
        assert backward == forward


def waits() -> list[int]:
    """How often a call asked the device for numbers: counted, and known beforehand."""
    exchange, seen = ExpertExchange(PAIR.placement()), []
    tolist = torch.Tensor.tolist
    even = rows_of(dist.get_rank(), 8, torch.float64)
    for static in (None, 4):
        asked: list[torch.Tensor] = []
        with replaced(torch.Tensor, "tolist", lambda self, asked=asked: asked.append(self) or tolist(self)):
            counts = torch.full((2,), 4)
            call(exchange, PAIR, ExchangeOptions(), rows=even, counts=counts, static_count=static)
        seen.append(len(asked))
    return seen


def test_padded_rows_need_no_word_of_the_device() -> None:
    assert run_on_ranks(waits, 2) == [[1, 0]] * 2


def chosen() -> list[int]:
    """Rows computed here, by what `auto` was told of the rows."""
    exchange, found = ExpertExchange(PAIR.placement()), []
    weights = held_weights(whole_weights(2, torch.float64), exchange.placement)
    rank = dist.get_rank()
    for bound in (16, 17):
        _, received = run(
            exchange,
            compute,
            weights,
            rows_of(rank, 3, torch.float64),
            torch.tensor([0, 3]),
            rows_bound=bound,
            options=ExchangeOptions(strategy="auto"),
        )
        found.append(received)
    return found


def test_auto_moves_the_fewer_bytes() -> None:
    # One expert has 5 * 7 + 7 + 7 * 5 + 5 = 82 numbers of 8 bytes, and is gathered: 656 bytes. A row is 40
    # bytes and goes there and back, half of them to the other rank: 40 bytes a row of the bound. Rows win
    # up to 16 of them (640 bytes), weights from 17 (680): then every rank computes its own rows.
    assert run_on_ranks(chosen, 2) == [[0, 3], [6, 3]]


def recomputed(layout: Layout) -> float:
    """Deviation of gradients under activation checkpointing, and of ways that change within one graph."""
    exchange = ExpertExchange(layout.placement())
    rank = dist.get_rank()
    numbers = [count("uneven", rank, expert) for expert in range(layout.experts)]
    ways = [
        ExchangeOptions(overlap=2, hierarchical=True),
        ExchangeOptions(strategy="dp"),
        ExchangeOptions(strategy="auto", overlap=3),
    ]

    def gradients(recompute: bool, options: list[ExchangeOptions]) -> list[torch.Tensor]:
        weights = held_weights(whole_weights(layout.experts, torch.float64), exchange.placement)
        start = rows = rows_of(rank, sum(numbers), torch.float64).requires_grad_()

        def layer(x: torch.Tensor, way: ExchangeOptions) -> torch.Tensor:
            out, _ = run(
                exchange, compute, weights, x.tanh(), torch.tensor(numbers), rows_bound=9, options=way
            )
            return out.sin()

        for way in options:
            rows = checkpoint(layer, rows, way, use_reentrant=False) if recompute else layer(rows, way)
        (rows * pull(rank, len(rows))).sum().backward()
        return [start.grad, *(w.grad for w in weights)]

    plain, other = gradients(False, [ExchangeOptions()] * 3), gradients(True, ways)
    return max(float((a - b).abs().max()) for a, b in zip(plain, other, strict=True))


def test_ways_may_change_within_a_graph_and_under_activation_checkpointing() -> None:
    layout = Layout(world=4, ep=4, experts=3, slices=2, ranks_per_node=2)
    assert max(run_on_ranks(recomputed, 4, layout)) < 1e-10


def groups_used(layouts: list[Layout]) -> list[list[list[int]]]:
    """The ranks of each group that counts, rows on their way out, and rows on their way home pass."""
    found = []
    for layout in layouts:
        exchange, used = ExpertExchange(layout.placement()), []
        init = AsyncAllToAll.__init__

        def logged(self, send, receive, group, used=used, init=init):  # type: ignore[no-untyped-def]
            used.append(dist.get_process_group_ranks(group))
            init(self, send, receive, group)

        with replaced(AsyncAllToAll, "__init__", logged):
            call(exchange, layout, ExchangeOptions(hierarchical=True))
        found.append(used)
    return found


def test_a_hierarchical_exchange_stays_inside_nodes_and_then_goes_across() -> None:
    grid = Layout(world=4, ep=4, experts=4, ranks_per_node=2)
    one_node = Layout(world=4, ep=4, experts=4, ranks_per_node=4)
    found = run_on_ranks(groups_used, 4, [grid, one_node])
    for rank, (hierarchical, flat) in enumerate(found):
        node, across = [[0, 1], [2, 3]][rank // 2], [[0, 2], [1, 3]][rank % 2]
        assert hierarchical == [node, across, node, across, across, node]
        assert flat == [[0, 1, 2, 3]] * 3


def refusals() -> list[str]:
    """What options that do not fit say."""
    said = []
    for layout, options in (
        (Layout(world=4, ep=4, experts=4, ranks_per_node=3), ExchangeOptions(hierarchical=True)),
        (Layout(world=4, ep=4, experts=4), ExchangeOptions(hierarchical=True)),
        (Layout(world=4, ep=4, experts=4), ExchangeOptions(strategy=3)),
        (Layout(world=4, ep=4, experts=4), ExchangeOptions(strategy=2)),
    ):
        with pytest.raises(LayoutError) as error:
            call(ExpertExchange(layout.placement()), layout, options)
        said.append(str(error.value))
    return said


def test_options_that_do_not_fit_are_refused_on_every_rank() -> None:
    for uneven, unknown, indivisible, groupless in run_on_ranks(refusals, 4):
        assert "parallel.ep_size (4) on nodes of 3 ranks gives [3, 1]; set hierarchical=false" in uneven
        assert "needs the same number of ranks on every node" in unknown
        assert "strategy (3) must divide parallel.ep_size (4)" in indivisible
        assert "has those for [1, 4]: give build_mesh gather_degrees=(2,)" in groupless


def test_on_one_rank_rows_stay_where_they_are() -> None:
    exchange = ExpertExchange(ExpertParallel.on_one_rank(2))
    rows = torch.arange(3 * C).view(3, C)
    out, received = run(
        exchange,
        lambda weights, x, counts, keys, part: x,
        [],
        rows,
        torch.tensor([1, 2]),
        options=ExchangeOptions(),
    )
    assert out is rows
    assert received == 3
