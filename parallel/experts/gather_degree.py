"""Over how many ranks the weights of experts are gathered before rows travel, and what each choice moves.

The exchange chooses by these numbers and the planner counts by them. Pure arithmetic, for one layer.

Legend: E experts, C channels, R ranks of the expert group, n slices of an expert, g gather degree.
"""

from functools import partial

from parallel.experts.options import ExchangeOptions, Strategy

KEY_BYTES = 8  # a row's key, an int64, travels with it


def candidate_degrees(strategy: Strategy, *, ep_size: int, expert_tensor_parallel_size: int) -> list[int]:
    """The gather degrees that a strategy may take, in ascending order."""
    if ep_size == 1:
        return [1]
    if not isinstance(strategy, str):
        return [strategy]
    return {"ep": [1], "dp": [ep_size], "auto": sorted({1, expert_tensor_parallel_size, ep_size})}[strategy]


def copies_of_row(expert_tensor_parallel_size: int, degree: int) -> int:
    """To how many ranks a row travels: one for each part of its expert that stays apart, max(1, n / g)."""
    return max(1, expert_tensor_parallel_size // degree)


def bytes_of_row(options: ExchangeOptions, *, channels: int, element_size: int, keyed: bool) -> int:
    """Bytes that travel for one row, there and back.

    Args:
        options: of the exchange.
        channels: C.
        element_size: bytes of an element of the row where it is computed.
        keyed: whether its key travels there with it.
    """
    return 2 * channels * wire_bytes(options, element_size) + (KEY_BYTES if keyed else 0)


def wire_bytes(options: ExchangeOptions, element_size: int) -> int:
    """Bytes of an element on its way: fp32 rows may travel in bf16."""
    return 2 if options.communication_dtype == "bf16" and element_size == 4 else element_size


def bytes_received(
    degree: int,
    *,
    ep_size: int,
    expert_tensor_parallel_size: int,
    weight_bytes: float,
    row_bytes: int,
    rows: float,
) -> float:
    """Bytes that a rank receives in a forward pass at a gather degree; the backward pass doubles them.

    It receives (g - 1) / R of all weights, and as many rows as it sends, of which one in R / g stays.

    Args:
        degree: g.
        ep_size: R.
        expert_tensor_parallel_size: n.
        weight_bytes: of all E experts, unsliced.
        row_bytes: of one row, there and back: `bytes_of_row`.
        rows: that a rank sends, before they are copied to the slices of an expert.
    """
    travelling = (
        rows * copies_of_row(expert_tensor_parallel_size, degree) * row_bytes * (1 - degree / ep_size)
    )
    return weight_bytes * (degree - 1) / ep_size + travelling


def cheapest_degree(
    strategy: Strategy,
    *,
    ep_size: int,
    expert_tensor_parallel_size: int,
    weight_bytes: float,
    row_bytes: int,
    rows: float,
) -> int:
    """The candidate of a strategy that moves the fewest bytes; the arguments of `bytes_received`."""
    received = partial(
        bytes_received,
        ep_size=ep_size,
        expert_tensor_parallel_size=expert_tensor_parallel_size,
        weight_bytes=weight_bytes,
        row_bytes=row_bytes,
        rows=rows,
    )
    degrees = candidate_degrees(
        strategy, ep_size=ep_size, expert_tensor_parallel_size=expert_tensor_parallel_size
    )
    return min(degrees, key=received)
