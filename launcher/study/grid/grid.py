"""From a study's file to its trials: the product of the axes, less what is excluded, and what is included."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError
from launcher.study.grid.file import Settings, StudyFile
from launcher.study.grid.trials import Study, Trial
from parallel.suggest import suggestion

LONGEST = 120  # characters of a name; file systems take 255 bytes


def study_of(path: Path, file: StudyFile) -> Study:
    """The trials of a study's file, all those of the first seed first.

    Raises:
        ConfigError: trials of one name, or an exclude or where.match that matches no trial.
    """
    in_product = list(_product(file.axes)) if file.axes or not file.include else []
    kept = [one for one in in_product if not any(_matches(out, one) for out in file.exclude)]
    settings = [*kept, *file.include]
    short = short_names(name for one in [file.axes, *settings] for name in one)
    trials = tuple(
        Trial(name=name_of(one, short, seed), axes=dict(one), seed=seed)
        for seed in file.seeds
        for one in settings
    )
    if problems := [*_unmatched(file, in_product, settings), *_same(trials), *_none(trials)]:
        raise ConfigError(f"{path} is not a valid study:\n  " + "\n  ".join(problems))
    return Study(
        name=path.stem,
        axes={name: list(values) for name, values in file.axes.items()},
        trials=trials,
        capacity_factors=file.evaluate.capacity_factors,
        top_k=file.evaluate.top_k,
    )


def overrides_of(file: StudyFile, trial: Trial, run_dir: Path) -> list[str]:
    """What makes the study's configuration that of a trial; of two for one option the last wins."""
    follows = [where.set for where in file.where if _matches(where.match, trial.axes)]
    settings = [*file.overrides.items(), *(pair for one in follows for pair in one.items())]
    own = [*trial.axes.items(), ("seed", trial.seed), ("run_dir", str(run_dir))]
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in [*settings, *own]]


def name_of(settings: Settings, short: Mapping[str, str], seed: int) -> str:
    """`capacity_factor=1.25,top_k=2,seed=0`: safe as the name of a directory, and the same every time."""
    parts = [f"{short[name]}={_shown(value)}" for name, value in settings.items()]
    name = ",".join([*parts, f"seed={seed}"])
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 20]}~{digest},seed={seed}"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each dotted option by as few of its last parts as tell it from the others."""
    unique, short = list(dict.fromkeys(names)), {}
    for name in unique:
        parts = name.split(".")
        tails = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        others = [f".{other}" for other in unique if other != name]
        short[name] = next((t for t in tails if not any(o.endswith(f".{t}") for o in others)), name)
    return short


def _product(axes: Mapping[str, list[Any]]) -> Iterator[Settings]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _matches(part: Settings, whole: Settings) -> bool:
    """Whether all of `part` stands in `whole`."""
    return all(name in whole and _equal(value, whole[name]) for name, value in part.items())


def _equal(one: Any, other: Any) -> bool:
    """As YAML means it: 1 is 1.0, and no bool."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _shown(value: Any) -> str:
    """A value for a name: letters, digits, `.`, `+`, `-`, and `x` between the entries of a list."""
    if isinstance(value, list):
        return "x".join(_shown(item) for item in value)
    if value is None:
        return "none"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9.+-]", "-", text).lstrip(".") or "-"


def _unmatched(file: StudyFile, in_product: list[Settings], settings: list[Settings]) -> Iterator[str]:
    places = [(f"exclude[{i}]", one, in_product) for i, one in enumerate(file.exclude)]
    places += [(f"where[{i}].match", one.match, settings) for i, one in enumerate(file.where)]
    for place, one, trials in places:
        if any(_matches(one, trial) for trial in trials):
            continue
        known = sorted({name for trial in trials for name in trial})
        unknown = next((name for name in one if name not in known), None)
        if unknown is None:
            yield f"{place} ({json.dumps(one)}) matches no trial"
        else:
            hint = suggestion(unknown, known, f"these vary: {', '.join(known) or 'none'}")
            yield f"{place}: {unknown} does not vary in this study; {hint}"


def _same(trials: Iterable[Trial]) -> Iterator[str]:
    seen: dict[str, Trial] = {}
    for trial in trials:
        other = seen.setdefault(trial.name, trial)
        if other is not trial:
            yield f"two trials are called {trial.name}: {json.dumps(other.axes)} and {json.dumps(trial.axes)}"


def _none(trials: tuple[Trial, ...]) -> Iterator[str]:
    if not trials:
        yield "no trial is left: exclude takes all of them"
