"""What a grid costs: steps, images and multiply-adds before it starts, hours once a trial has finished."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from data_shards.errors import DataError
from launcher.config.load import as_yaml
from launcher.config.schema import DataConfig, RunConfig
from launcher.study.grid.resolve import PlannedTrial
from launcher.validation.rules import steps_in
from launcher.validation.train_sets import images_per_epoch
from swin_moe.backbone.flops import Cost, cost
from swin_moe.config import ModelConfig

# of a training step, in forward passes: the gradients of the inputs and those of the weights are one each
FORWARDS = 3


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """What one trial costs; steps, images and flops are None where nobody has counted an epoch's images."""

    model: Cost
    steps: int | None
    images: int | None

    @property
    def flops(self) -> int | None:
        """Multiply-adds of all training steps, if no token is dropped: three times the forward pass."""
        return None if self.images is None else FORWARDS * self.model.flops * self.images


class ModelCosts:
    """Costs of models, each counted once: capacity and the order of service change none."""

    def __init__(self) -> None:
        self._known: dict[ModelConfig, Cost] = {}

    def of(self, model: ModelConfig, top_k: int | None = None) -> Cost:
        """The cost of a model, with another number of choices if one is given."""
        if moe := model.moe:
            moe = replace(moe, capacity_factor=1.0, eval_capacity_factor=1.0, batch_prioritized=False)
            model = replace(model, moe=replace(moe, top_k=top_k or moe.top_k))
        if model not in self._known:
            self._known[model] = cost(model)
        return self._known[model]


def costs_of(trials: Iterable[PlannedTrial], epoch_images: int | None = None) -> dict[str, TrialCost]:
    """The cost of every trial by its name.

    Args:
        trials: resolved.
        epoch_images: of data.train where that is not here.
    """
    models, samples, costs = ModelCosts(), dict[str, int | None](), {}
    for planned in trials:
        config, sets = planned.config, as_yaml(asdict(planned.config.data)["train"])
        if sets not in samples:
            samples[sets] = _samples(config.data, epoch_images)
        steps = _steps(config, samples[sets])
        images = None if steps is None else steps * config.train.global_batch_size
        costs[planned.trial.name] = TrialCost(model=models.of(config.model), steps=steps, images=images)
    return costs


def _samples(data: DataConfig, otherwise: int | None) -> int | None:
    try:
        return images_per_epoch(data) or otherwise
    except DataError:
        return otherwise


def _steps(config: RunConfig, samples: int | None) -> int | None:
    try:
        return steps_in(config.train.duration, config, samples)
    except ValueError:  # epochs of unknown size
        return None


@dataclass
class TimeEstimator:
    """How long trials take, learnt from the finished ones: seconds of all their sessions and evaluations.

    A trial takes as long as those of the same axes with other seeds; without any, as its multiply-adds say.
    """

    costs: Mapping[str, TrialCost]
    finished: dict[str, float] = field(default_factory=dict)  # seconds by name

    def expected_s(self, planned: PlannedTrial, trials: Iterable[PlannedTrial]) -> float | None:
        """Seconds that a trial will take; None while there is nothing to tell by."""
        alike = [
            self.finished[other.trial.name]
            for other in trials
            if other.trial.name in self.finished and other.trial.axes == planned.trial.axes
        ]
        if alike:
            return sum(alike) / len(alike)
        known = [(self.costs[name].flops, seconds) for name, seconds in self.finished.items()]
        work = sum(flops for flops, _ in known if flops)
        own = self.costs[planned.trial.name].flops
        return sum(seconds for _, seconds in known) * own / work if work and own else None

    def left_s(
        self, todo: Sequence[tuple[PlannedTrial, float]], trials: Sequence[PlannedTrial], jobs: int
    ) -> float | None:
        """Seconds until the trials to do are done, `jobs` at a time; each with the seconds it has had."""
        expected = [(self.expected_s(planned, trials), spent_s) for planned, spent_s in todo]
        if any(seconds is None for seconds, _ in expected):
            return None
        return sum(max(0.0, (seconds or 0.0) - spent_s) for seconds, spent_s in expected) / jobs
