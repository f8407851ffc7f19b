"""Tasks by name and by path, and the section of their options: wherever a configuration goes."""

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.checkpoints.diff import _options
from launcher.cli.program import main
from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.task_sections import config_class, options_of
from launcher.config.task_specs import built_in_tasks, register, unregister
from launcher.metrics.records import read_records
from launcher.tasks.classification import SPEC as CLASSIFICATION
from launcher.tasks.registry import task_spec
from launcher.validation.resume_policy import changed_options, kind_of
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.options import with_full_names
from swin_moe.yaml_files import parse_yaml

TEXT = """\
run_dir: run
model: {image_size: 32, embed_dim: 8, depths: [1], num_heads: [1], window_size: 4, num_classes: 2}
data: {train: t, val: v}
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the task `toy`."""

    factor: float = 2.0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"toy.factor ({self.factor}) must be above 0")


TOY = replace(CLASSIFICATION, name="toy", options=Options, on_change={"steps": "free"})


class Bare:
    """Neither builds nor knows data."""

    name, options = "bare", None


BARE, UNHASHABLE = Bare(), SimpleNamespace(name="bare", options=None)
PATH = f"{__name__}:TOY"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(TEXT)


@pytest.fixture
def registered() -> Iterator[None]:
    register(TOY)
    yield
    unregister("toy")


def test_a_registered_task(registered: None) -> None:
    config = load_config("run.yaml", ["task=toy", "toy.factor=3.0"])
    assert options_of(config, Options) == Options(factor=3.0)
    assert task_spec(config.task) is TOY
    assert config != load_config("run.yaml", ["task=toy"])


def test_a_task_is_found_without_reading_the_folder_of_tasks_again(
    registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every check of a configuration finds its task, and a plan makes thousands of checks."""
    names = built_in_tasks()
    assert {"classification", "simmim", "toy"} <= set(names)

    def reading(*arguments: object) -> Iterator[object]:
        raise AssertionError("the folder is read again")

    monkeypatch.setattr("launcher.config.task_specs.pkgutil.iter_modules", reading)
    assert built_in_tasks() == names
    assert task_spec("simmim").name == "simmim"


@pytest.mark.parametrize("task", [PATH, "toy"])
def test_a_configuration_survives_yaml_and_pickle(task: str, registered: None) -> None:
    config = load_config("run.yaml", [f"task='{task}'", "toy.factor=3.0"])
    Path("saved.yaml").write_text(dump_config(config))
    assert load_config("saved.yaml") == config == pickle.loads(pickle.dumps(config))
    assert replace(config, seed=1).toy == config.toy  # type: ignore[attr-defined]


def test_a_task_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "site" / "toys-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[swin_moe.tasks]\ntoy = {PATH}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    config = load_config("run.yaml", ["task=toy", "toy.factor=3.0"])
    assert task_spec(config.task) is TOY
    assert options_of(config, Options).factor == 3.0
    with pytest.raises(ConfigError, match="no such task \\(got 'toi'\\); did you mean toy"):
        load_config("run.yaml", ["task=toi"])


def test_sections_of_other_tasks_are_checked_and_dropped() -> None:
    """Every saved configuration of earlier versions has `simmim`."""
    Path("run.yaml").write_text(f"{TEXT}simmim: {{mask_ratio: 0.5}}\n")
    config = load_config("run.yaml")
    assert "simmim" not in dump_config(config)
    assert options_of(load_config("run.yaml", ["task=simmim"]), SimMIMConfig).mask_ratio == 0.5
    with pytest.raises(
        ConfigError, match=r"simmim\.mask_rato: no such option; did you mean simmim\.mask_ratio"
    ):
        load_config("run.yaml", ["simmim.mask_rato=0.5"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=clasification"], "task: no such task (got 'clasification'); did you mean classification?"),
        (
            ["task=xyz"],
            "task: no such task (got 'xyz'); known here: classification, detection, distill, ",
        ),
        (["task=no_such_package:SPEC"], "task: no_such_package:SPEC cannot be imported"),
        (["task=json:loads"], "task: json:loads is no TaskSpec"),
        (["task=3"], "task: Input should be a valid string (got 3)"),
        ([f"task='{PATH}'", "toy.factor=-1.0"], "toy.factor (-1.0) must be above 0"),
        ([f"task='{PATH}'", "toy.faktor=1.0"], "toy.faktor: no such option; did you mean toy.factor?"),
        (["simmin.mask_ratio=0.5"], "simmin: no such option; did you mean simmim?"),
    ],
)
def test_wrong_tasks_and_options_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("run.yaml", overrides)
    assert message in str(error.value)


def test_a_task_cannot_take_the_name_of_a_section(registered: None) -> None:
    register(replace(TOY, name="optim"))
    try:
        with pytest.raises(ConfigError, match="'optim' cannot name the section of a task's options"):
            load_config("run.yaml", ["task=optim"])
        assert load_config("run.yaml").task == "classification"
    finally:
        unregister("optim")


def test_what_may_change_on_resume(registered: None) -> None:
    assert (kind_of("toy.factor"), kind_of("toy.steps"), kind_of("simmim.mask_ratio")) == (
        "fixed",
        "free",
        "fixed",
    )
    now = parse_yaml(dump_config(load_config("run.yaml", ["task=toy", "toy.steps=2"])))
    before = parse_yaml(dump_config(load_config("run.yaml", ["task=toy"])))
    assert [(change.name, change.kind) for change in changed_options(before, now)] == [("toy.steps", "free")]
    older = {name: value for name, value in before.items() if name != "toy"} | {"simmim": {"mask_ratio": 0.1}}
    assert [
        change.name for change in changed_options(older, before)
    ] == []  # defaults; another task's section


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BARE", "BARE is no TaskSpec, it has no build, model_on_meta"),
        ("UNHASHABLE", "UNHASHABLE is no TaskSpec (got"),
    ],
)
def test_a_wrong_spec_is_no_traceback(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "run.yaml", f"task='{__name__}:{name}'"]) == 2
    assert message in capsys.readouterr().err


def test_checkpoints_of_a_task_that_is_not_here_can_be_compared() -> None:
    before, now = ({"config": f"{{task: gone, seed: {seed}}}"} for seed in (0, 1))
    (change,) = _options(before, now)
    assert "no such task (got 'gone')" in change.name


def test_the_class_of_a_configuration_is_one_for_each_task() -> None:
    assert config_class(PATH) is config_class(PATH)
    assert config_class("classification").__name__ == config_class(PATH).__name__ == "RunConfig"


def test_losses_of_earlier_versions_are_told_apart() -> None:
    """Then `loss` was the total loss."""
    records = [
        {"step": 1, "loss": 3.5, "aux_loss": 0.5},
        {"step": 2, "loss": 3.0, "aux_loss": 0.5, "total_loss": 3.5},
    ]
    Path("metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [(one["loss"], one["total_loss"]) for one in read_records(Path("metrics.jsonl"))] == [
        (3.0, 3.5)
    ] * 2


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("moby", "moby.colours.hue=0.9", "  moby.colours.hue (0.9) must be in 0 ... 0.5; 0 turns it off"),
        (
            "moby",
            "moby.colours.blur_prob=[0.0]",
            "  moby.colours.blur_prob ([0.0]) and moby.colours.solarize_prob ([0.0, 0.2]) must have",
        ),
        ("distill", "distill.teacher.image_size=0", "  distill.teacher.image_size (0) must be at least 1"),
        ("distill_logits", "distill_logits.teacher.weights=''", "  distill_logits.teacher.weights ('') must"),
    ],
)
def test_a_section_in_a_section_names_its_options_in_full(task: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("run.yaml", [f"task={task}", override])
    assert f"\n{message}" in str(refused.value)


def test_full_names_leave_paths_alone() -> None:
    options = ["distill.teacher.ema", "distill.teacher.model", "distill.beta"]
    text = "a/teacher.model, teacher.model, (teacher.ema), x.teacher.ema, teacher.emax, teacher.pth, beta"
    assert with_full_names(text, "distill.teacher", options) == (
        "a/teacher.model, distill.teacher.model, (distill.teacher.ema), x.teacher.ema, teacher.emax, "
        "teacher.pth, beta"
    )
    assert with_full_names("distill.beta", "distill", options) == "distill.beta"
