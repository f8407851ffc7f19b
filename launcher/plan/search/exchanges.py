"""The exchange options of a layout that change its speed and not its result, fastest first.

`padded` and `communication_dtype` stay as configured: what `padded` saves, a wait for the device, is not
modelled, and rows in bf16 change the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from launcher.config.schema import RunConfig
from launcher.plan.search.candidate import Predictor
from launcher.validation.elastic import divisors
from launcher.validation.rules import rule_errors
from parallel.experts.options import ExchangeOptions, Strategy

OVERLAPS = (1, 2, 4, 8)  # chunks of rows
Key = tuple[object, ...]


def with_exchange(config: RunConfig, exchange: ExchangeOptions) -> RunConfig:
    """The run with other exchange options."""
    return replace(config, parallel=replace(config.parallel, expert_exchange=exchange))


def lean_exchange(config: RunConfig) -> ExchangeOptions:
    """The configured options, rows alone on their way, in one hop and one chunk: valid wherever any is."""
    return replace(config.parallel.expert_exchange, strategy="ep", hierarchical=False, overlap=1)


def exchanges(config: RunConfig, nodes: Sequence[int]) -> list[ExchangeOptions]:
    """All that a layout of experts may have, its own first if it is valid there."""
    own, moe = config.parallel.expert_exchange, config.model.moe
    lean = lean_exchange(config)
    if moe is None or moe.backend != "native":
        return [own]
    others = set(rule_errors(with_exchange(config, lean), sum(nodes), nodes))
    travels = config.parallel.ep_size > 1
    found = [
        replace(own, strategy=strategy, hierarchical=hierarchical, overlap=overlap)
        for strategy, hierarchical, overlap in product(_strategies(config), (False, True), OVERLAPS)
    ]
    return [
        one
        for one in dict.fromkeys([own, *(found if travels else [lean])])
        if others.issuperset(rule_errors(with_exchange(config, one), sum(nodes), nodes))
    ]


def _strategies(config: RunConfig) -> Iterator[Strategy]:
    ep_size = config.parallel.ep_size
    yield from ("ep", "dp", "auto")
    yield from (degree for degree in divisors(ep_size) if 1 < degree < ep_size)


@dataclass(frozen=True, kw_only=True)
class ExchangeOrder:
    """The exchange options of layouts, fastest first; options that are equally fast keep their order.

    A step's seconds are a sum (launcher/plan/time/estimate.py). What depends on the exchange depends neither
    on stages 0 to 2 of ZeRO nor on offloading, so layouts that differ only there have the same order.
    """

    predictor: Predictor
    nodes: Sequence[int]
    known: dict[Key, list[ExchangeOptions]] = field(default_factory=dict)

    def __call__(self, config: RunConfig) -> list[ExchangeOptions]:
        """Of a layout that breaks no rule of its experts."""
        parallel, every = config.parallel, config.model.activation_checkpoint_every
        slices, micro = parallel.expert_tensor_parallel_size, config.train.micro_batch_size
        key = (parallel.ep_size, slices, micro, every, parallel.zero_stage == 3)
        if key not in self.known:
            self.known[key] = sorted(exchanges(config, self.nodes), key=lambda e: self._step_s(config, e))
        return self.known[key]

    def _step_s(self, config: RunConfig, exchange: ExchangeOptions) -> float:
        return self.predictor.time(with_exchange(config, exchange), self.nodes).step_s
