"""Short names of configurations, `E=8 f=1.25 BPR`, and what their letters mean."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.study.grid.trials import Study
from launcher.study.report.results import TrialResult
from swin_moe.renamed import current_name

EXPERTS, CHOICES = "model.moe.num_experts", "model.moe.top_k"
CAPACITY, PRIORITY = "model.moe.capacity_factor", "model.moe.batch_prioritized"
DENSE = "model.moe"  # null for the model without experts
SHORT = {EXPERTS: "E", CHOICES: "k", CAPACITY: "f"}
MEANINGS = {
    EXPERTS: ("E", f"number of experts of an MoE layer ({EXPERTS})"),
    CHOICES: (
        "k",
        f"number of experts of a token ({CHOICES}); in the name of a configuration that of training",
    ),
    CAPACITY: ("f", f"capacity factor ({CAPACITY}); in the name of a configuration that of training"),
    PRIORITY: ("BPR, no BPR", f"with and without batch-prioritised routing ({PRIORITY})"),
    DENSE: ("dense", f"the model without experts ({DENSE}: null)"),
}  # of an option: its letters, and what they are
DROPLESS = ("dropless", "without a capacity: no token is dropped")
UPPER_BOUND = ("f≤", "upper bound of an adaptive capacity factor")
Settings = Mapping[str, Any]  # what sets a configuration apart from the study's others, in order


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
    text = number_text(value) if isinstance(value, float) else json.dumps(value, default=str)
    return f"{SHORT.get(name, name.rpartition('.')[2])}={text}"


def factor(value: float) -> str:
    """A capacity factor for a person: 0 is dropless, a negative one an upper bound."""
    if value == 0:
        return "dropless"
    return number_text(value) if value > 0 else f"≤{number_text(-value)}"


def at_factor(value: float) -> str:
    """A capacity factor with its letter: `f=1.25`, `dropless`."""
    return f"f={factor(value)}" if value > 0 else f"f{factor(value)}" if value else factor(value)


def number_text(value: float) -> str:
    """A number as short as it can be without becoming another one."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def letters(settings: Mapping[str, Settings], factors: Sequence[float]) -> list[tuple[str, str]]:
    """What the labels of a page consist of, and what each part means.

    Args:
        settings: of each configuration, by its label.
        factors: capacity factors at inference.
    """
    names = dict.fromkeys(name for each in settings.values() for name in each)
    # k and f also stand in titles, and for what is evaluated
    shown = [name for name in MEANINGS if name in names or (factors and name in (CHOICES, CAPACITY))]
    every = [MEANINGS[name] for name in shown]
    values = [*factors, *(each[CAPACITY] for each in settings.values() if CAPACITY in each)]
    every += [DROPLESS] if 0 in values else []
    every += [UPPER_BOUND] if any(value is not None and value < 0 for value in values) else []
    return every + [_of_option(name, settings) for name in names if name not in MEANINGS]


def _of_option(name: str, settings: Mapping[str, Settings]) -> tuple[str, str]:
    """An option without a letter: its last part, or its values if they are words."""
    values = dict.fromkeys(each[name] for each in settings.values() if isinstance(each.get(name), str))
    return (", ".join(values), f"values of {name}") if values else (name.rpartition(".")[2], name)
