"""A study as pandas frames: its trials, its evaluations at inference, and what they have in common.

Trials that differ in nothing but the seed are one configuration. A spread is always the standard deviation
over seeds (n - 1 in its denominator), NaN for one seed, and n goes with it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from launcher.study.grid.trials import Study
from launcher.study.report.results import TrialResult
from swin_moe.config import ModelConfig
from swin_moe.renamed import current_name

EXPERTS, CHOICES = "model.moe.num_experts", "model.moe.top_k"
CAPACITY, PRIORITY = "model.moe.capacity_factor", "model.moe.batch_prioritized"
DENSE = "model.moe"  # null for the model without experts
SHORT = {EXPERTS: "E", CHOICES: "k", CAPACITY: "f"}
MOST_LINES = 10  # of one chart, so that each can be followed
Settings = Mapping[str, Any]  # what sets a configuration apart from the study's others, in order


class QualityMetric(NamedTuple):
    """A measure of quality, of a trial's last evaluation in training and of its evaluations at inference."""

    key: str
    label: str  # of an axis
    title: str  # with which a chart's title begins
    unit: float  # the frames have the stored value times this
    sign: int  # 1 where more is better, -1 where less is
    digits: int
    percent: str  # after a value
    change: str  # after a difference


TOP1 = QualityMetric("top1", "top-1 accuracy, %", "Accuracy", 100.0, 1, 2, " %", "points")
LOSS = QualityMetric("loss", "loss", "Loss", 1.0, -1, 4, "", "of loss")


def primary_metric(summary: Mapping[str, Any]) -> QualityMetric:
    """What a trial says that it is judged by; older summaries do not say."""
    key = summary.get("primary", "top1" if "top1" in summary else "loss")
    sign = 1 if summary.get("higher_is_better", True) else -1
    other = QualityMetric(key, key, key.capitalize(), 1.0, sign, 4, "", f"of {key}")
    return {metric.key: metric for metric in (TOP1, LOSS)}.get(key, other)


class Spread(NamedTuple):
    """A mean over n seeds and the standard deviation, which is NaN for one seed."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float] | pd.Series) -> "Spread":
        """The spread of at least one value."""
        series = pd.Series(values, dtype=float)
        return cls(mean=float(series.mean()), std=float(series.std()), n=len(series))

    def text(self, digits: int, sign: str = "") -> str:
        """`62.10 ± 0.34`; without the second for one seed."""
        around = "" if pd.isna(self.std) else f" ± {self.std:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{around}"


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report is made from.

    `settings` and `models` are by the label of a configuration, in the study's order. `trials` has a row for
    each trained trial: configuration, seed, its summary, and parameters, active_parameters, flops and
    train_flops of its model. `evaluations` has a row for each evaluation at inference: configuration, seed,
    trained_top_k, and what `swin-moe eval` wrote. `layers` has the metrics of MoE layers by configuration,
    seed, step and layer.
    """

    study: Study
    results: Sequence[TrialResult]
    settings: Mapping[str, Settings]
    models: Mapping[str, ModelConfig]
    trials: pd.DataFrame
    evaluations: pd.DataFrame
    layers: pd.DataFrame

    @classmethod
    def of(cls, study: Study, results: Sequence[TrialResult]) -> "ReportData":
        """The data of a study's results."""
        trained = [result for result in results if result.is_trained]
        settings, labels = configurations(study, trained)
        trials, evaluations, layers = [], [], [pd.DataFrame()]
        for result, label in zip(trained, labels, strict=True):
            assert result.config is not None
            assert result.cost is not None
            who = {"configuration": label, "seed": result.trial.seed}
            sizes = {**result.cost._asdict(), "train_flops": result.train_flops}
            trials.append({**who, **result.summary, **sizes})
            moe = result.config.model.moe
            trained_as = {**who, "trained_top_k": moe.top_k if moe else 0}
            evaluations += [{**trained_as, **row} for row in result.evaluations]
            if len(result.layers):  # an empty frame would turn the numbers of the others into objects
                layers.append(result.layers.assign(**who))
        return cls(
            study=study,
            results=results,
            settings=settings,
            models={label: r.config.model for r, label in zip(trained, labels, strict=True) if r.config},
            trials=_frame(trials),
            evaluations=_frame(evaluations),
            layers=pd.concat(layers),
        )

    @property
    def metrics(self) -> list[QualityMetric]:
        """What every trained trial can be judged by, the primary one first."""
        summaries = [result.summary for result in self.results if result.is_trained]
        known = {metric.key: metric for metric in (*map(primary_metric, summaries), TOP1, LOSS)}
        return [m for m in known.values() if all(m.key in summary for summary in summaries)]

    @property
    def experts(self) -> list[str]:
        """The configurations with experts."""
        return [label for label, model in self.models.items() if model.moe is not None]

    @property
    def dense(self) -> list[str]:
        """The configurations without experts."""
        return [label for label, model in self.models.items() if model.moe is None]

    def spreads(self, column: str) -> pd.DataFrame:
        """mean, std and count of a column of the trials, a row for each configuration."""
        return self.trials.groupby("configuration", sort=False)[column].agg(["mean", "std", "count"])

    def spread(self, label: str, column: str) -> Spread:
        """The spread of a column of one configuration."""
        return Spread.of(self.trials.loc[self.trials.configuration == label, column])

    def seeds_of(self, labels: Iterable[str]) -> list[int]:
        """The different numbers of seeds that these configurations have."""
        trials = self.trials[self.trials.configuration.isin(list(labels))]
        return sorted(set(trials.groupby("configuration").size()))

    def families(self, labels: Iterable[str], *free: str) -> dict[str, list[str]]:
        """Configurations that differ in the `free` options alone, by the label of all other options."""
        members: dict[str, list[str]] = {}
        for each in labels:
            members.setdefault(label(without(self.settings[each], *free)), []).append(each)
        return members

    def few_families(self) -> dict[str, list[str]]:
        """The configurations in at most MOST_LINES families, by as many options as that allows."""
        every = dict.fromkeys(name for settings in self.settings.values() for name in settings)
        rest = [name for name in every if name not in (CAPACITY, PRIORITY, CHOICES, EXPERTS)]
        order = (CAPACITY, PRIORITY, *rest, CHOICES, EXPERTS)
        each = (self.families(self.settings, *order[:n]) for n in range(len(order)))
        return next(
            (families for families in each if len(families) <= MOST_LINES),
            self.families(self.settings, *order),
        )

    def pairs(self, option: str, low: Any, high: Any) -> list[tuple[str, str]]:
        """The configurations of experts with `low` and those with `high` that agree in everything else."""
        rest = {each: without(self.settings[each], option) for each in self.experts}
        with_low, with_high = (
            [each for each in rest if self.settings[each].get(option, "absent") == value]
            for value in (low, high)
        )
        return [(one, other) for one in with_low for other in with_high if rest[one] == rest[other]]

    def differences(self, pairs: Iterable[tuple[str, str]], column: str) -> pd.Series:
        """Second minus first of a column of the trials, seed by seed, where both have it."""
        values = self.trials.set_index(["configuration", "seed"])[column]
        changes = [values[second] - values[first] for first, second in pairs]
        return pd.concat(changes).dropna() if changes else pd.Series(dtype=float)


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame, with the metrics in the units that a person reads."""
    frame = pd.DataFrame(rows, columns=None if rows else ["configuration", "seed"])
    return frame.assign(**{m.key: m.unit * frame[m.key] for m in (TOP1, LOSS) if m.key in frame})


def configurations(study: Study, trained: Sequence[TrialResult]) -> tuple[dict[str, Settings], list[str]]:
    """The settings of each configuration by its label, and the label of each trial."""
    varying = _varying(study, trained)
    by_axes: dict[str, str] = {}
    settings: dict[str, Settings] = {}
    for result in trained:
        axes = json.dumps(result.trial.axes, sort_keys=True)
        if axes not in by_axes:
            values = _settings_of(result, varying)
            text = label(values)
            by_axes[axes] = text if text not in settings else f"{text} #{len(settings)}"
            settings[by_axes[axes]] = values
    return settings, [by_axes[json.dumps(result.trial.axes, sort_keys=True)] for result in trained]


def _varying(study: Study, trained: Sequence[TrialResult]) -> list[str]:
    """The options in which trials of a study differ: the axes, then what single trials add."""
    axes = [result.trial.axes for result in trained]
    names = dict.fromkeys([*study.axes, *(name for one in axes for name in one)])
    return [name for name in names if len({json.dumps(one.get(name, "absent")) for one in axes}) > 1]


def _settings_of(result: TrialResult, varying: Sequence[str]) -> dict[str, Any]:
    """The values of the varying options, as the configuration was resolved.

    A model without experts has no options of experts: it has model.moe = None instead.
    """
    assert result.config is not None
    if result.config.model.moe is None:
        rest = [name for name in varying if not name.startswith(DENSE)]
        return {DENSE: None, **{name: option(result.config, name) for name in rest}}
    return {name: option(result.config, name) for name in varying if name != DENSE}


def option(config: Any, name: str) -> Any:
    """The value of a dotted option; None where a part of it is not there."""
    for part in current_name(name).split("."):
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def without(settings: Settings, *names: str) -> dict[str, Any]:
    """The settings without some options."""
    return {name: value for name, value in settings.items() if name not in names}


def label(settings: Settings) -> str:
    """A configuration in a few characters: `E=8 f=1.25 BPR`."""
    return " ".join(_shown(name, value) for name, value in settings.items()) or "all"


def _shown(name: str, value: Any) -> str:
    if name == DENSE:
        return "dense"
    if name == PRIORITY:
        return "BPR" if value else "no BPR"
    if name == CAPACITY:
        return at_factor(value)
    if isinstance(value, str):
        return value
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)
    return f"{SHORT.get(name, name.rpartition('.')[2])}={text}"


def factor(value: float) -> str:
    """A capacity factor for a person: 0 is dropless, a negative one an upper bound."""
    if value == 0:
        return "dropless"
    return f"{value:g}" if value > 0 else f"≤{-value:g}"


def at_factor(value: float) -> str:
    """A capacity factor with its letter: `f=1.25`, `dropless`."""
    return f"f={value:g}" if value > 0 else f"f{factor(value)}" if value else factor(value)
