"""One layout of a run: the seconds of its step, its memory, and why it cannot be had.

`plan`, `--search`, `--simulate` and the advice predict every layout with `Predictor`, so that the same
configuration on the same GPUs has the same figures in all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.memory.estimate import Memory, predict_memory
from launcher.plan.time.compute_cost import ComputeCost, compute_cost
from launcher.plan.time.estimate import StepTime, predict_time
from launcher.validation.rules import rule_errors


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout, what it takes, and why it cannot be had; "" where it can."""

    config: RunConfig
    nodes: tuple[int, ...]  # ranks of each node
    time: StepTime | None = None  # None where it breaks a rule
    memory: Memory | None = None  # None where it was not predicted
    reason: str = ""

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return sum(self.nodes)

    @property
    def grad_accum_steps(self) -> int:
        """Micro-batches of a step."""
        return self.config.train.grad_accum_steps(self.ranks)

    @property
    def overrides(self) -> list[str]:
        """What to add to the command line for it."""
        parallel, model = self.config.parallel, self.config.model
        exchange = parallel.expert_exchange
        found = {
            "parallel.ep_size": parallel.ep_size,
            "parallel.expert_tensor_parallel_size": parallel.expert_tensor_parallel_size,
            "parallel.zero_stage": parallel.zero_stage,
            "parallel.offload_optimizer": str(parallel.offload_optimizer).lower(),
            "train.micro_batch_size": self.config.train.micro_batch_size,
            "model.activation_checkpoint_every": model.activation_checkpoint_every,
        }
        if model.moe is not None:
            found |= {
                "parallel.expert_exchange.strategy": exchange.strategy,
                "parallel.expert_exchange.hierarchical": str(exchange.hierarchical).lower(),
                "parallel.expert_exchange.overlap": exchange.overlap,
            }
        return [f"{name}={value}" for name, value in found.items()]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicts layouts of one model on one hardware; what layouts share is computed once."""

    hardware: Hardware
    cost: ComputeCost
    others: dict[str, ComputeCost] = field(default_factory=dict)  # of further precisions

    @staticmethod
    def of(config: RunConfig, hardware: Hardware) -> "Predictor":
        """For layouts of a run.

        Raises:
            ConfigError: the hardware does not know the precision, or the task cannot be planned.
        """
        hardware.peak(config.train.precision)
        return Predictor(hardware=hardware, cost=compute_cost(config, hardware))

    def timed(self, config: RunConfig, nodes: Sequence[int]) -> Candidate:
        """A layout by the rules and by time."""
        candidate = Candidate(config=config, nodes=tuple(nodes))
        if errors := rule_errors(config, candidate.ranks, nodes):
            return replace(candidate, reason=errors[0])
        return replace(candidate, time=self.time(config, nodes))

    def time(self, config: RunConfig, nodes: Sequence[int]) -> StepTime:
        """The step of a layout that breaks no rule."""
        return predict_time(config, nodes, self.hardware, self._cost(config.train.precision))

    def weighed(self, candidate: Candidate) -> Candidate:
        """A timed layout with its memory, which takes longer."""
        if candidate.time is None:
            return candidate
        memory = predict_memory(candidate.config, candidate.nodes, self.hardware.device)
        short = memory.peak_bytes - self.hardware.memory_bytes
        reason = f"needs {short / 2**30:.1f} GiB more than {self.hardware.memory_gib:g}" if short > 0 else ""
        return replace(candidate, memory=memory, reason=reason)

    def predict(self, config: RunConfig, nodes: Sequence[int]) -> Candidate:
        """Time and memory of a layout."""
        return self.weighed(self.timed(config, nodes))

    def _cost(self, precision: str) -> ComputeCost:
        if precision == self.cost.precision:
            return self.cost
        if precision not in self.others:
            self.others[precision] = ComputeCost(
                work=self.cost.work,
                hardware=self.hardware,
                precision=precision,
                teacher=self.cost.teacher,
            )
        return self.others[precision]
