"""How rows reach experts: the options of the exchange. No torch."""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges

Strategy = Literal["ep", "dp", "auto"] | int


@dataclass(frozen=True, kw_only=True)
class ExchangeOptions:
    """How rows reach experts; none of it changes results.

    The strategies are those of Hwang et al. 2023, "Tutel", section 3.1: a number g that is
    expert_tensor_parallel_size is its EP + DP, `ep` with slices its EP + MP.
    """

    # ep sends rows to the experts' ranks; dp gathers all experts' weights at every rank, and no row moves;
    # a number g gathers weights over g neighbouring ranks and sends rows to one of each g; auto takes the one
    # of ep, expert_tensor_parallel_size and dp that moves the fewest bytes (gather_degree.py)
    strategy: Strategy = "ep"
    hierarchical: bool = False  # exchange inside the node, then across
    padded: bool = False  # even splits and no wait for the device, where a capacity bounds them
    overlap: int = 1  # chunks of rows: one is in flight while another is computed
    communication_dtype: Literal["same", "bf16"] = (
        "same"  # bf16: fp32 rows and their gradients travel rounded
    )

    def __post_init__(self) -> None:
        check_ranges("parallel.expert_exchange.", self, overlap=(1, 64))
        if not isinstance(self.strategy, str) and (isinstance(self.strategy, bool) or self.strategy < 1):
            raise ValueError(
                f"parallel.expert_exchange.strategy ({self.strategy}) must be ep, dp, auto or a number of "
                "ranks, at least 1"
            )
