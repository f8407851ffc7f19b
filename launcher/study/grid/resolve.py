"""Every cell as the run that it will be, checked before the first one starts: all errors at once, by cell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.schema import RunConfig
from launcher.rundir.paths import RunFiles
from launcher.study.grid.file import StudyFile, config_of
from launcher.study.grid.grid import overrides_of, study_of
from launcher.study.grid.requested import Asked, asked_of, sweep_errors
from launcher.study.grid.trials import Cell, Study, run_directory
from launcher.validation.resume_policy import changed_options
from launcher.validation.rules import problems
from swin_moe.config import SOFTMAX_ROUTERS, MoEConfig
from swin_moe.renamed import RenamedError, current_names
from swin_moe.yaml_files import YamlError, parse_yaml

NAMED = 3  # cells that a message names before it counts
UNPRIORITIZED = ("expert_choice", "soft", "hash", "random")  # routers that serve in no order of priority


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A cell and the run that it is."""

    cell: Cell
    config: RunConfig
    asked: Asked

    @property
    def run(self) -> RunFiles:
        """The files of its run directory."""
        return RunFiles(self.config.run_dir)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study with every cell resolved."""

    directory: Path
    study: Study
    cells: tuple[Planned, ...]
    warnings: tuple[str, ...]


def resolve(path: Path, file: StudyFile, ranks: int | None, *, data: bool = True, here: bool = False) -> Plan:
    """Resolve and check all cells of a study's file.

    Args:
        path: of the file.
        file: its content.
        ranks: of every cell; None leaves out the rules that need their number.
        data: check shards and other files too.
        here: whether the cells run on this machine.

    Raises:
        ConfigError: with everything that is wrong, each with the cells that it is wrong of.
    """
    study, directory, base = study_of(path, file), Path(file.study_dir), config_of(path, file)
    found: list[Planned] = []
    errors: dict[str, list[str]] = {}
    for cell in study.cells:
        try:
            config = load_config(base, overrides_of(file, cell, run_directory(directory, cell)))
        except ConfigError as error:
            lines = _lines(error)
        else:
            planned = Planned(cell=cell, config=config, asked=asked_of(config, study))
            lines = [
                *problems(config, ranks, data=data, here=here),
                *sweep_errors(config, study),
                *_changed(planned),
            ]
            found.append(planned)
        for line in lines:
            errors.setdefault(line, []).append(cell.name)
    warnings, same = _twins(found)
    if errors or same:
        named = [f"{_named(names)}: {line}" for line, names in errors.items()]
        raise ConfigError(f"{path} cannot be run:\n" + "\n".join(f"  {line}" for line in [*named, *same]))
    return Plan(directory=directory, study=study, cells=tuple(found), warnings=tuple(warnings))


def _lines(error: ConfigError) -> list[str]:
    """The errors of one configuration, without the head that every cell would repeat."""
    head, *lines = str(error).splitlines()
    return [line.strip() for line in lines] or [head]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def _changed(planned: Planned) -> list[str]:
    """What a cell that has begun would now compute otherwise."""
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


def _twins(cells: Iterable[Planned]) -> tuple[list[str], list[str]]:
    """Warnings of cells that train the same and are evaluated otherwise; errors of those that only repeat."""
    trained: dict[str, Planned] = {}
    warnings, errors = [], []
    for planned in cells:
        other = trained.setdefault(dump_config(effective(planned.config, evaluated=False)), planned)
        if other is planned:
            continue
        names = f"{other.cell.name} and {planned.cell.name}"
        why = _idle(other.cell.axes, planned.cell.axes)
        if _is_evaluated_alike(other, planned):
            errors.append(f"{names} are the same run twice{why}: take one of them out")
        else:
            warnings.append(f"{names} train the same model{why}; only their evaluation differs")
    return warnings, errors


def _idle(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """The options by which two cells differ in vain."""
    names = [
        name for name in {**one, **other} if (name in one, one.get(name)) != (name in other, other.get(name))
    ]
    return f", as {', '.join(names)} does nothing here" if names else ""


def _is_evaluated_alike(one: Planned, other: Planned) -> bool:
    has_capacity = any(factor for factor, _ in one.asked.ways or ())
    configs = [effective(planned.config, evaluated=has_capacity) for planned in (one, other)]
    return one.asked == other.asked and configs[0] == configs[1]


def effective(config: RunConfig, *, evaluated: bool) -> RunConfig:
    """The same configuration with what makes no difference at its default, so that equal runs are equal.

    Args:
        config: of a cell.
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
    if moe.router not in SOFTMAX_ROUTERS:
        idle |= {"gate_noise": 0.0}
    if moe.balance == "none":
        idle |= {"load_balance_weight": 0.0}
    return replace(moe, **idle)
