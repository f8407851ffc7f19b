"""What one forward pass changes of the configuration. No torch."""

from dataclasses import dataclass

from parallel.experts.options import ExchangeOptions


@dataclass(frozen=True, kw_only=True)
class RoutingOverrides:
    """What one forward pass changes of every MoE layer's configuration; None keeps it.

    Nothing is rebuilt: parameters and placement stay.
    """

    top_k: int | None = None
    capacity_factor: float | None = None
    exchange: ExchangeOptions | None = None
    by_image: bool = False  # whether the statistics are also given for each image
