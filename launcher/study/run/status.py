"""`swin-moe study status`: every trial and how it stands."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from launcher.config.load import ConfigError, load_config
from launcher.console.columns import aligned
from launcher.console.counts import span
from launcher.rundir.paths import RunFiles
from launcher.study.grid.file import load_study_file
from launcher.study.grid.requested import requested_evaluation
from launcher.study.grid.state import State, state_of
from launcher.study.grid.trials import Study, StudyError, Trial, read_study, run_directory
from launcher.study.run.queued import in_queue

TITLES = ("trial", "state", "step", "images/s", "left", "quality", "loss", "reason")


def show_status(args: argparse.Namespace, _: list[str]) -> int:
    """Print the table, or with --json an object; ConfigError where there is no study."""
    directory = study_directory(args.study)
    try:
        study = read_study(directory)
    except StudyError as error:
        raise ConfigError(str(error)) from None
    states = {trial.name: trial_state(directory, study, trial) for trial in study.trials}
    for name in in_queue(directory):
        if name in states and states[name].name not in ("running", "evaluating", "finished"):
            states[name] = replace(states[name], name="queued", reason="")
    args.answer = as_json(directory, study, states)
    print("\n".join([*table(states), summary(states)]))
    return 0


def study_directory(place: Path) -> Path:
    """The directory of a study that is named by its directory or by its file."""
    return place if place.is_dir() else Path(load_study_file(place).study_dir)


def trial_state(directory: Path, study: Study, trial: Trial) -> State:
    """The state of a trial, by the configuration with which its run began."""
    run = RunFiles(run_directory(directory, trial))
    requested = requested_evaluation(load_config(run.config), study) if run.config.exists() else None
    return state_of(run, requested)


def as_json(directory: Path, study: Study, states: dict[str, State]) -> dict[str, object]:
    """What the table tells, as plain values; null for what is not known."""
    trials = [
        {
            **asdict(trial),
            "run": str(run_directory(directory, trial)),
            "state": (state := states[trial.name]).name,
        }
        | {name: value for name, value in asdict(state).items() if name != "name"}
        for trial in study.trials
    ]
    return {"study": study.name, "directory": str(directory), "cells": trials}


def table(states: dict[str, State]) -> list[str]:
    """A line a trial."""
    rows = [TITLES, *(_row(name, state) for name, state in states.items())]
    return aligned(rows)


def summary(states: dict[str, State]) -> str:
    """How many trials are in which state."""
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state.name] = counts.get(state.name, 0) + 1
    return f"{len(states)} trials: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def failures(states: dict[str, State]) -> Sequence[str]:
    """A line for each trial that failed, with the reason."""
    return [f"  {name}: {state.reason}" for name, state in states.items() if state.name == "failed"]


def _row(name: str, state: State) -> tuple[str, ...]:
    step = (
        "" if state.step is None else str(state.step) + (f"/{state.total_steps}" if state.total_steps else "")
    )
    speed = "" if state.images_s is None else f"{state.images_s:.0f}"
    left = span(state.eta_s) if state.eta_s is not None else ""
    quality = "" if state.top1 is None else f"{state.top1:.2%}"
    if state.value is not None and state.primary not in ("top1", "loss"):
        quality = f"{state.primary} {state.value:.4f}"
    loss = "" if state.loss is None else f"{state.loss:.4f}"
    return name, state.name, step, speed, left, quality, loss, state.reason
