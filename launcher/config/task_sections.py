"""RunConfig with the section of its task, which has the name of the task.

Each task brings the dataclass of its options. The class of a run's configuration is a RunConfig with one
more field, so that whatever walks over options (errors, overrides, YAML, the resume policy) sees them as any
others. Sections of other tasks are checked and then dropped.
"""

from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

from launcher.config.schema import RunConfig
from launcher.config.task_specs import NamedSpec, TaskError, built_in_tasks, find_spec
from swin_moe.options import option_problems
from swin_moe.yaml_files import Tree

Options = TypeVar("Options")
COMMON = frozenset(option.name for option in fields(RunConfig))


class TaskTree(NamedTuple):
    """The options of a run that its class takes, see `of_task`."""

    kind: type[RunConfig]
    tree: Tree
    problems: list[str]


def of_task(tree: Tree) -> TaskTree:
    """The class of a run's configuration, its options, and what is wrong with them, a line each."""
    task, own, problems = tree.get("task", RunConfig.task), RunConfig, []
    specs = _specs_of([*built_in_tasks(), *(key for key in tree if key not in COMMON)])
    if isinstance(task, str):
        try:
            spec = find_spec(task)
            own = _with_sections((spec,))
            specs.append(spec)
        except TaskError as error:
            problems.append(str(error))
    every = _with_sections(tuple({spec.name: spec for spec in specs}.values()))
    names = {option.name for option in fields(every)} - {option.name for option in fields(own)}
    kept = {key: value for key, value in tree.items() if key not in names}
    return TaskTree(own, kept, problems + option_problems(every, tree))


def config_class(task: str) -> type[RunConfig]:
    """RunConfig with the section of a task.

    Raises:
        TaskError: there is no such task.
    """
    return _with_sections((find_spec(task),))


def class_of_every_task() -> type[RunConfig]:
    """RunConfig with the sections of all tasks that come with this system or are registered."""
    return _with_sections(tuple(_specs_of(built_in_tasks())))


def is_task_section(name: str) -> bool:
    """Whether a section of a configuration holds the options of some task."""
    return bool(name not in COMMON and [spec for spec in _specs_of([name]) if spec.options])


def section_names(kind: type[RunConfig]) -> list[str]:
    """The sections of tasks that a class of configurations has."""
    return [option.name for option in fields(kind) if option.name not in COMMON]


def options_of(config: RunConfig, kind: type[Options]) -> Options:
    """The options of a run's task: its section, or the defaults."""
    more = (getattr(config, name) for name in section_names(type(config)))
    return next((section for section in more if isinstance(section, kind)), None) or kind()


def _specs_of(names: Sequence[str]) -> list[NamedSpec]:
    """The specs of those names that are tasks, each with a name that a section can have."""
    specs = []
    for name in names:
        try:
            spec = find_spec(name)
            _with_sections((spec,))
        except TaskError:  # a wrong name of a section, which gets a line with the nearest one
            continue
        specs.append(spec)
    return specs


@cache
def _with_sections(specs: tuple[NamedSpec, ...]) -> type[RunConfig]:
    """RunConfig with a field for the options of each task.

    Raises:
        TaskError: a task has the name of a section of every run.
    """
    sections = [
        (spec.name, spec.options, field(default_factory=spec.options)) for spec in specs if spec.options
    ]
    for name, *_ in sections:
        if name in COMMON or not name.isidentifier():
            raise TaskError(f"task: {name!r} cannot name the section of a task's options: take another name")
    if not sections:
        return RunConfig
    return make_dataclass(
        "RunConfig",
        sections,
        bases=(RunConfig,),
        namespace={"__module__": __name__, "__reduce__": _reduced, "__doc__": RunConfig.__doc__},
        frozen=True,
        kw_only=True,
    )


def _reduced(config: RunConfig) -> tuple[Any, ...]:
    """How a configuration is pickled, whose class has no name in a module."""
    return _restored, (config.task, {option.name: getattr(config, option.name) for option in fields(config)})


def _restored(task: str, options: dict[str, Any]) -> RunConfig:
    return config_class(task)(**options)
