"""Every trial as the run that it will be, checked before the first one starts: all errors at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.schema import RunConfig
from launcher.rundir.paths import RunFiles
from launcher.study.grid.file import StudyFile, config_of
from launcher.study.grid.grid import overrides_of, study_of
from launcher.study.grid.requested import RequestedEvaluation, requested_evaluation, sweep_errors
from launcher.study.grid.trials import Study, Trial, run_directory
from launcher.validation.resume_policy import changed_options
from launcher.validation.rules import problems
from swin_moe.moe_config import MoEConfig
from swin_moe.renamed import RenamedError, current_names
from swin_moe.router_names import ROUTER_NAMES, SOFTMAX_ROUTERS
from swin_moe.yaml_files import YamlError, parse_yaml

NAMED = 3  # trials that a message names before it counts
UNPRIORITIZED = ("expert_choice", "soft", "hash", "random")  # routers that serve in no order of priority


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial and the run that it is."""

    trial: Trial
    config: RunConfig
    requested: RequestedEvaluation

    @property
    def run(self) -> RunFiles:
        """The files of its run directory."""
        return RunFiles(self.config.run_dir)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study with every trial resolved."""

    directory: Path
    study: Study
    trials: tuple[PlannedTrial, ...]
    warnings: tuple[str, ...]


def resolve(
    path: Path, file: StudyFile, ranks: int | None, *, data: bool = True, here: bool = False
) -> StudyPlan:
    """Resolve and check all trials of a study's file.

    Args:
        path: of the file.
        file: its content.
        ranks: of every trial; None leaves out the rules that need their number.
        data: check shards and other files too.
        here: whether the trials run on this machine.

    Raises:
        ConfigError: with everything that is wrong, each with the trials that it is wrong of.
    """
    study, directory, base = study_of(path, file), Path(file.study_dir), config_of(path, file)
    resolved: list[PlannedTrial] = []
    errors: dict[str, list[str]] = {}
    for trial in study.trials:
        try:
            config = load_config(base, overrides_of(file, trial, run_directory(directory, trial)))
        except ConfigError as error:
            lines = _lines(error)
        else:
            planned = PlannedTrial(trial=trial, config=config, requested=requested_evaluation(config, study))
            lines = [
                *problems(config, ranks, data=data, here=here),
                *sweep_errors(config, study),
                *_changed(planned),
            ]
            resolved.append(planned)
        for line in lines:
            errors.setdefault(line, []).append(trial.name)
    warnings, same = _twins(resolved)
    if errors or same:
        named = [f"{_named(names)}: {line}" for line, names in errors.items()]
        raise ConfigError(f"{path} cannot be run:\n" + "\n".join(f"  {line}" for line in [*named, *same]))
    return StudyPlan(directory=directory, study=study, trials=tuple(resolved), warnings=tuple(warnings))


def _lines(error: ConfigError) -> list[str]:
    """The errors of one configuration, without the head that every trial would repeat."""
    head, *lines = str(error).splitlines()
    return [line.strip() for line in lines] or [head]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def _changed(planned: PlannedTrial) -> list[str]:
    """What a trial that has begun would now compute otherwise."""
    try:
        before = current_names(parse_yaml(planned.run.config.read_text()), notice=False)
    except FileNotFoundError:
        return []
    except (OSError, YamlError, RenamedError) as error:
        return [f"{planned.run.config} cannot be read: {error}"]
    differing = changed_options(before, parse_yaml(dump_config(planned.config)))
    return [
        f"{change.name} is {change.now!r} now, and the run has begun with {change.before!r}: set it as it "
        "was, choose another study_dir, or remove its directory below cells/"
        for change in differing
        if change.kind != "free"
    ]


def _twins(trials: Iterable[PlannedTrial]) -> tuple[list[str], list[str]]:
    """Warnings of trials that train the same but are evaluated differently; errors of those that repeat."""
    trained: dict[str, PlannedTrial] = {}
    warnings, errors = [], []
    for planned in trials:
        other = trained.setdefault(dump_config(effective(planned.config, evaluated=False)), planned)
        if other is planned:
            continue
        names = f"{other.trial.name} and {planned.trial.name}"
        why = _idle(other.trial.axes, planned.trial.axes)
        if _is_evaluated_alike(other, planned):
            errors.append(f"{names} are the same run twice{why}: take one of them out")
        else:
            warnings.append(f"{names} train the same model{why}; only their evaluation differs")
    return warnings, errors


def _idle(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """The options by which two trials differ in vain."""
    names = [
        name for name in {**one, **other} if (name in one, one.get(name)) != (name in other, other.get(name))
    ]
    return f", as {', '.join(names)} does nothing here" if names else ""


def _is_evaluated_alike(one: PlannedTrial, other: PlannedTrial) -> bool:
    has_capacity = any(factor for factor, _ in one.requested.combinations or ())
    configs = [effective(planned.config, evaluated=has_capacity) for planned in (one, other)]
    return one.requested == other.requested and configs[0] == configs[1]


def effective(config: RunConfig, *, evaluated: bool) -> RunConfig:
    """The same configuration with what makes no difference at its default, so that equal runs are equal.

    Args:
        config: of a trial.
        evaluated: at a capacity, where it counts who is served first though training drops nobody.
    """
    moe = config.model.moe
    idle = None if moe is None else _effective(moe, evaluated)
    model = replace(config.model, image_size=config.model.image_sides, moe=idle)
    return replace(config, run_dir="", model=model)


def _effective(moe: MoEConfig, evaluated: bool) -> MoEConfig:
    idle: dict[str, Any] = {}
    if moe.router == "soft":
        idle |= {"capacity_factor": 1.0, "eval_capacity_factor": 1.0}
    else:
        idle |= {"slots_per_expert": 1}
    drops = moe.capacity_factor or moe.eval_capacity_factor or evaluated
    if moe.router in UNPRIORITIZED or not drops:
        idle |= {"batch_prioritized": False}
    if moe.router != "sigmoid":
        idle |= {"bias_update_rate": 0.0}
    if moe.router in ROUTER_NAMES and moe.router not in SOFTMAX_ROUTERS:
        idle |= {"gate_noise": 0.0}
    if moe.balance == "none":
        idle |= {"load_balance_weight": 0.0}
    return replace(moe, **idle)
