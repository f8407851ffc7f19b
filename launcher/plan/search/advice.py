"""What to change first: every single change of a layout, predicted, and the best of each kind by its gain.

A change keeps the result, but for what says otherwise. The search tries the combinations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.config.schema import ParallelConfig, RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.search.candidate import Candidate, Predictor
from launcher.plan.search.exchanges import exchanges, with_exchange
from launcher.plan.search.search import STAGES, micro_batches
from launcher.plan.time.estimate import FEED
from launcher.plan.time.roofline import op_s
from launcher.validation.elastic import divisors
from parallel.experts.options import ExchangeOptions
from parallel.zero.options import OVERLAPPING_BUCKET

LEAST, MOST = 0.01, 3  # the gain that is worth a line, and lines
EXCHANGE_OPTIONS = ("strategy", "hierarchical", "overlap", "communication_dtype")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a run."""

    kind: str
    overrides: Mapping[str, Any]
    config: RunConfig
    note: str = ""  # what else it changes

    @property
    def text(self) -> str:
        """As on the command line."""
        values = {name: str(v).lower() if isinstance(v, bool) else v for name, v in self.overrides.items()}
        return " ".join(f"{name}={value}" for name, value in values.items()) + self.note


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change with its prediction."""

    change: Change
    candidate: Candidate
    gain: float  # of speed, as a share; below 0 where a run that does not fit gets slower

    @property
    def line(self) -> str:
        """In words."""
        assert self.candidate.time is not None
        return f"{self.change.text}: step {self.candidate.time.step_s * 1e3:.1f} ms, {self.gain:+.0%}"


def advise(candidate: Candidate, predictor: Predictor, most: int = MOST) -> list[Advice]:
    """The changes that help most, one of each kind: faster ones, or fitting ones of a run that does not fit.

    Args:
        candidate: with its time and memory.
        predictor: of the run on its hardware.
        most: changes to return; memory, which takes longest, is predicted for the fastest until so many fit.
    """
    assert candidate.time is not None
    step_s, fits = candidate.time.step_s, not candidate.reason
    found: list[Advice] = []
    for change, one in _fastest_first(candidate, predictor):
        assert one.time is not None
        gain = step_s / one.time.step_s - 1
        if len(found) == most or (fits and gain < LEAST):
            break
        kinds = {advice.change.kind for advice in found}
        if change.kind not in kinds and not (weighed := predictor.weighed(one)).reason:
            found.append(Advice(change=change, candidate=weighed, gain=gain))
    return found


def _fastest_first(candidate: Candidate, predictor: Predictor) -> list[tuple[Change, Candidate]]:
    """Every valid change by its time; of equally fast ones the earlier."""
    found = changes(candidate.config, candidate.nodes, predictor.hardware)
    timed = ((change, predictor.timed(change.config, candidate.nodes)) for change in found)
    valid = [(change, one) for change, one in timed if one.time is not None]
    return sorted(valid, key=lambda pair: pair[1].time.step_s if pair[1].time else 0.0)


def changes(config: RunConfig, nodes: Sequence[int], hardware: Hardware) -> Iterator[Change]:
    """Every single change that is worth predicting; some break a rule."""
    for exchange in exchanges(config, nodes)[1:]:  # the first is the run's own
        yield _exchange_change(config, exchange)
    yield from _rounding_changes(config, hardware)
    yield from _parallel_changes(config, sum(nodes))
    for micro in micro_batches(config, sum(nodes)):
        yield _train_change("micro-batch", config, micro_batch_size=micro)
    every = 0 if config.model.activation_checkpoint_every else 1
    model = replace(config.model, activation_checkpoint_every=every)
    name = "model.activation_checkpoint_every"
    yield Change(kind="recompute", overrides={name: every}, config=replace(config, model=model))
    section = config.deepspeed.get("zero_optimization", {})
    if hardware.device == "cuda" and "reduce_bucket_size" in section:
        smaller = {"zero_optimization": {**section, "reduce_bucket_size": OVERLAPPING_BUCKET}}
        yield Change(
            kind="bucket",
            overrides={"deepspeed.zero_optimization.reduce_bucket_size": OVERLAPPING_BUCKET},
            config=replace(config, deepspeed={**config.deepspeed, **smaller}),
        )


def _exchange_change(config: RunConfig, exchange: ExchangeOptions, note: str = "") -> Change:
    own = config.parallel.expert_exchange
    changed = {
        f"parallel.expert_exchange.{name}": getattr(exchange, name)
        for name in EXCHANGE_OPTIONS
        if getattr(exchange, name) != getattr(own, name)
    }
    return Change(kind="exchange", overrides=changed, config=with_exchange(config, exchange), note=note)


def _rounding_changes(config: RunConfig, hardware: Hardware) -> Iterator[Change]:
    """To bf16, which rounds what fp32 does not."""
    if config.train.precision != "fp32" or "bf16" not in hardware.peak_tflops:
        return
    yield replace(_train_change("precision", config, precision="bf16"), note=" (rounds to bf16)")
    if config.model.moe is not None:
        exchange = replace(config.parallel.expert_exchange, communication_dtype="bf16")
        yield _exchange_change(config, exchange, " (rounds rows to bf16)")


def _parallel_changes(config: RunConfig, ranks: int) -> Iterator[Change]:
    own = config.parallel
    for stage, offload in STAGES:
        options = {"zero_stage": stage, "offload_optimizer": offload}
        yield _parallel_change("ZeRO", config, options)
    if config.model.moe is not None:
        for ep_size in divisors(ranks):
            if ep_size % own.expert_tensor_parallel_size == 0:
                yield _parallel_change("experts", config, {"ep_size": ep_size})


def _parallel_change(kind: str, config: RunConfig, options: Mapping[str, Any]) -> Change:
    own: ParallelConfig = config.parallel
    changed = {name: value for name, value in options.items() if value != getattr(own, name)}
    overrides = {f"parallel.{name}": value for name, value in changed.items()}
    parallel = replace(own, **changed)
    return Change(kind=kind, overrides=overrides, config=replace(config, parallel=parallel))


def _train_change(kind: str, config: RunConfig, **options: Any) -> Change:
    overrides = {f"train.{name}": value for name, value in options.items()}
    return Change(
        kind=kind, overrides=overrides, config=replace(config, train=replace(config.train, **options))
    )


def advice_lines(candidate: Candidate, found: Sequence[Advice], predictor: Predictor) -> list[str]:
    """Where the time goes, the changes by their gain, and what cannot be predicted."""
    time, config = candidate.time, candidate.config
    assert time is not None
    shares = sorted(((seconds / time.step_s, name) for name, seconds in time.groups.items()), reverse=True)
    slowest = ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.1)
    lines = [f"slowest: {slowest} of a step of {time.step_s * 1e3:.1f} ms"]
    if found:
        lines += [f"try {'first' if not candidate.reason else 'to make it fit'}, alone:"]
        lines += [f"  {advice.line}" for advice in found]
    elif candidate.reason:
        lines += ["no single change makes it fit; --search tries combinations"]
    else:
        lines += ["no single change of the layout is predicted to be faster by 1 %"]
    if time.groups[FEED]:
        lines += [_feed_line(predictor.hardware)]
    if not config.train.compile:
        share = passes_share(config, predictor)
        lines += [
            f"not predicted: train.compile=true, which fuses passes over memory ({share:.0%} of compute)"
        ]
    return lines


def _feed_line(hardware: Hardware) -> str:
    """What to do where decoding is the limit, which no option of the layout changes."""
    return (
        f"the data feed is waited for: {hardware.cores_per_rank:g} cores at {hardware.img_s_core:g} images/s "
        "feed a GPU; more cores, or smaller pictures (`swin-moe shards pack --reencode`)"
    )


def passes_share(config: RunConfig, predictor: Predictor) -> float:
    """The share of passes over memory in the seconds of the dense parts: the most that fusing can save."""
    micro, precision = config.train.micro_batch_size * predictor.cost.work.views, config.train.precision
    seconds = [0.0, 0.0]  # of products, of passes
    for part in predictor.cost.work.parts:
        for op in (op for ops in part.trace.at(micro) for op in ops):
            seconds[op.kind != "product"] += part.number * op_s(op, predictor.hardware, precision)
    return seconds[1] / sum(seconds)
