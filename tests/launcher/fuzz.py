"""Values for every option of a run, and what `swin-moe check` and two steps of training say of each.

The options come from the dataclasses' own fields: a new option of a known type is tried without a line here,
and an option of an unknown type fails. The cases of one batch run in one forked process, as a start costs
seconds.
"""

import contextlib
import json
import math
import resource
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest import mock

from launcher.schema import RunConfig
from tests.launcher.running import CONFIG, command, overrides, steps

MEMORY = 2**35  # bytes of address space: what needs more is a model that `check` must refuse
STEPS = 2
TINY = (
    "model.depths=[1, 1]",
    "model.moe.blocks=[[], [0]]",
    "train.global_batch_size=8",
    "train.eval_batch_size=8",
)
INTEGERS = (0, -1, 1, 2, 3, 10**12, 2**63, 2**64, 10**30)
FLOATS = (0.0, -1.0, 1e-300, 0.5, 1.0, 1.5, 1e300, math.nan, math.inf, -math.inf)
TEXTS = ("", " ", "nowhere", "\0", "x" * 300, "/proc/nowhere", "\ud800")
DURATIONS = ("0 steps", "1 steps", "3 images", "0.001 epochs", "-1 steps", "nan epochs", "9" * 30 + " epochs")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option by its dotted name, with the type that its dataclass declares."""

    name: str
    hint: Any


@dataclass(kw_only=True)
class Report:
    """What came of the cases: how many were refused, how many trained, and every disagreement."""

    refused: int = 0
    trained: int = 0
    disagreements: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Add what another process found."""
        self.refused += other.refused
        self.trained += other.trained
        self.disagreements += other.disagreements


def options(section: type = RunConfig, prefix: str = "") -> Iterator[Option]:
    """Every option of a dataclass and of the sections in it."""
    hints = get_type_hints(section)
    for one in fields(section):
        name = prefix + one.name
        yield Option(name=name, hint=hints[one.name])
        for below in (hints[one.name], *get_args(hints[one.name])):
            if is_dataclass(below):
                yield from options(below, f"{name}.")  # type: ignore[arg-type]


def values_of(option: Option) -> list[Any]:
    """Values at and beyond the ends of an option's type, and of other types.

    Raises:
        AssertionError: the type is new here; add its values.
    """
    return [*EXTRA.get(option.name, ()), *_values(option.name, option.hint)]


def _values(name: str, hint: Any) -> list[Any]:
    kind, choices = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return [None if choice is NoneType else value for choice in choices for value in _values(name, choice)]
    if kind is Literal:
        return [*choices, "other", 0.5]
    if kind is tuple and Ellipsis in choices:
        return [[], *([value] for value in _values(name, choices[0])), "text"]
    if kind is tuple:
        return [[], [1.0], *([value] * len(choices) for value in FLOATS), [1.0, *choices[1:-1], 0.5][:0] or [0.5]]
    if is_dataclass(hint):
        return [{}, "text", [], 1]
    if kind is dict:
        return [{}, [], "text", {"": 1}, {"no_such": 1}]
    simple: dict[Any, Sequence[Any]] = {
        int: (*INTEGERS, 0.5, "1", True, None),
        float: (*FLOATS, 10**400, "1.0", True, None),
        bool: (True, False, 1, "yes", None),
        str: (*(DURATIONS if _is_duration(name) else ()), *TEXTS, 1, None),
        NoneType: (None,),
    }
    assert hint in simple, f"{name}: the fuzz knows no values of {hint}; add them to tests/launcher/fuzz.py"
    return [*simple[hint]]


def _is_duration(name: str) -> bool:
    return name.rpartition(".")[2] in ("duration", "warmup", "decay_at") or name.endswith(("every",))


EXTRA: dict[str, Sequence[Any]] = {}


def try_cases(shards: Path, work: Path, cases: Sequence[Sequence[str]]) -> Report:
    """Check and, where that accepts, train every case on this rank."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    report = Report()
    for number, case in enumerate(cases):
        (work / "case.txt").write_text(" ".join(case))
        line = [str(CONFIG), *overrides(shards, work / str(number), *TINY, *case)]
        _try(line, case, report, work / str(number))
    return report


def _try(line: list[str], case: Sequence[str], report: Report, run: Path) -> None:
    with contextlib.suppress(SystemExit):
        try:
            checked = command("check", *line, "--nproc", "1")
        except Exception:
            report.disagreements.append(f"{case}: check raised\n{traceback.format_exc(limit=-3)}")
            return
        if checked.code:
            report.refused += 1
            return
        report.trained += 1
        try:
            with mock.patch("launcher.session.Session.train", _two_steps):
                trained = command("train", *line)
        except BaseException:
            report.disagreements.append(f"{case}: train raised\n{traceback.format_exc(limit=-3)}")
            return
        if trained.code:
            report.disagreements.append(f"{case}: check 0, train {trained.code}: {trained.err[-300:]}")
            return
        if not run.exists():
            return
        for record in steps(run):
            if not math.isfinite(record["loss"]) or record["dropped_fraction"] >= 1:
                report.disagreements.append(f"{case}: trains to nothing: {record}")


def _two_steps(self: Any, train: Any = None) -> None:
    self.total_steps = min(self.total_steps, STEPS)
    return ORIGINAL(self)


from launcher.session import Session  # noqa: E402

ORIGINAL = Session.train


def override(name: str, value: Any) -> str:
    """An override of the command line, in YAML as JSON writes it."""
    return f"{name}={json.dumps(value)}"
