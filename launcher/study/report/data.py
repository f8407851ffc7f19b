"""A study as pandas frames: its trials, its evaluations at inference, and what they have in common.

Trials that differ in nothing but the seed are one configuration. A spread is always the standard deviation
over seeds (n - 1 in its denominator), NaN for one seed, and n goes with it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from launcher.study.drawing.looks import styles
from launcher.study.grid.trials import Study
from launcher.study.report.labels import (
    CAPACITY,
    CHOICES,
    EXPERTS,
    PRIORITY,
    Settings,
    configurations,
    label,
    without,
)
from launcher.study.report.results import TrialResult
from swin_moe.config import ModelConfig

# options that change how much work a training is, and may differ inside of one law of the loss
WORK = (
    "model.embed_dim",
    "model.depths",
    "model.num_heads",
    "model.image_size",
    "model.patch_size",
    "model.mlp_ratio",
    "model.moe.shared_expert",
    CHOICES,
    "train.duration",
    "train.global_batch_size",
)
MOST_LINES = 10  # of one chart, so that each can be followed


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
        for result, name in zip(trained, labels, strict=True):
            assert result.config is not None
            assert result.cost is not None
            who = {"configuration": name, "seed": result.trial.seed}
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
        return [m for m in self._known_metrics if all(m.key in summary for summary in self._summaries)]

    @property
    def incomplete_metrics(self) -> list[QualityMetric]:
        """What some trained trials can be judged by, and others cannot."""
        some = [m for m in self._known_metrics if any(m.key in summary for summary in self._summaries)]
        return [metric for metric in some if metric not in self.metrics]

    @property
    def _summaries(self) -> list[dict[str, Any]]:
        return [result.summary for result in self.results if result.is_trained]

    @property
    def _known_metrics(self) -> list[QualityMetric]:
        known = {metric.key: metric for metric in (*map(primary_metric, self._summaries), TOP1, LOSS)}
        return list(known.values())

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

    @cached_property
    def styles(self) -> dict[str, int]:
        """The style of every configuration, then of every family of several; one of each on a page."""
        families = [
            self.families(self.experts, CAPACITY),
            self.few_families(),
            self.families(self.experts, EXPERTS),
            self.families(self.settings, *WORK),
        ]
        several = [name for each in families for name, members in each.items() if len(members) > 1]
        return styles(self.settings, several)

    def style_of(self, name: str, members: Sequence[str]) -> int:
        """The style of a family: that of its configuration if it is of one."""
        own = self.styles[members[0]]
        return own if len(members) == 1 else self.styles.get(name, own)

    def pairs(self, option: str, low: Any, high: Any) -> list[tuple[str, str]]:
        """The configurations of experts with `low` and those with `high` that agree in everything else."""
        rest = {each: without(self.settings[each], option) for each in self.experts}
        with_low, with_high = (
            [each for each in rest if self.settings[each].get(option, "absent") == value]
            for value in (low, high)
        )
        return [(one, other) for one in with_low for other in with_high if rest[one] == rest[other]]

    def differences(self, pairs: Iterable[tuple[str, str]], column: str) -> pd.Series:
        """Second minus first of a column of the trials, where both have a seed; the index has the seeds."""
        values = self.trials.set_index(["configuration", "seed"])[column]
        changes = [values[second] - values[first] for first, second in pairs]
        return pd.concat(changes).dropna() if changes else pd.Series(dtype=float).rename_axis("seed")


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame, with the metrics in the units that a person reads."""
    frame = pd.DataFrame(rows, columns=None if rows else ["configuration", "seed"])
    return frame.assign(**{m.key: m.unit * frame[m.key] for m in (TOP1, LOSS) if m.key in frame})


def evenly(items: list[str], most: int) -> list[str]:
    """At most so many, evenly from the first to the last."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
