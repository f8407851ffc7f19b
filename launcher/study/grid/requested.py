"""What the checkpoint of a trial is evaluated at, and whether that has been done."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import RunConfig
from launcher.evaluation.modes import sweep_modes
from launcher.rundir.paths import RunFiles, read_json
from launcher.study.grid.trials import Study
from launcher.validation.capacity_rules import slots_error

Combination = tuple[float, int]  # capacity factor, 0 for none, and choices of a token


@dataclass(frozen=True, kw_only=True)
class RequestedEvaluation:
    """An evaluation: the arguments of `swin-moe eval` after the run directory, and what it will have written.

    `combinations` is None for the ordinary evaluation, whose file is evaluation.json.
    """

    arguments: tuple[str, ...] = ()
    combinations: frozenset[Combination] | None = None

    @property
    def file(self) -> str:
        """What `swin-moe eval` writes."""
        return "evaluation.json" if self.combinations is None else "sweep.json"

    def result(self, run: RunFiles, step: int) -> dict[str, Any]:
        """The evaluation of that step's checkpoint; empty where it is not there, or lacks something."""
        record = read_json(results(run, step) / self.file)
        if self.combinations is not None and not self.combinations <= combinations_in(record.get("rows", ())):
            return {}
        return record


def requested_evaluation(config: RunConfig, study: Study) -> RequestedEvaluation:
    """The sweep of a model with experts and a capacity; the ordinary evaluation of any other."""
    moe = config.model.moe
    factors, choices = study.capacity_factors, study.top_k
    if moe is not None and moe.router == "expert_choice":
        factors, choices = tuple(factor for factor in factors if factor), ()  # it chooses at a capacity only
    if moe is None or moe.router == "soft" or not (factors or choices):
        return RequestedEvaluation()
    options = {"--sweep-capacity": factors, "--sweep-top-k": choices}
    arguments = [(name, ",".join(map(repr, values))) for name, values in options.items() if values]
    combinations = frozenset((way.capacity_factor, way.top_k) for way in sweep_modes(moe, factors, choices))
    return RequestedEvaluation(
        arguments=tuple(text for pair in arguments for text in pair), combinations=combinations
    )


def sweep_errors(config: RunConfig, study: Study) -> list[str]:
    """Why the sweep cannot be had of this model."""
    moe = config.model.moe
    every = (slots_error(config.model, "evaluate.capacity_factors", f) for f in study.capacity_factors)
    errors = [error for error in every if error]
    if moe is None or moe.router in ("soft", "expert_choice"):
        return errors
    most = moe.num_experts
    return errors + [
        f"evaluate.top_k ({top_k}) must lie in 1..model.moe.num_experts ({most})"
        for top_k in study.top_k
        if top_k > most
    ]


def results(run: RunFiles, step: int) -> Path:
    """Where `swin-moe eval` writes about the checkpoint of a step."""
    return run.path / "eval" / f"step-{step:08d}"


def combinations_in(rows: Iterable[Any]) -> frozenset[Combination]:
    """The combinations that a sweep.json holds."""
    return frozenset((float(row["capacity_factor"]), int(row["top_k"])) for row in rows)
