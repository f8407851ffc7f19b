"""What may change on resume: a class for every option, and what each class means for a run."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from launcher.config.load import dump_config, load_config
from launcher.config.schema import RunConfig
from launcher.validation.resume_policy import KINDS, changed_options, kind_of, newest_manifest, section_of
from swin_moe.yaml_files import parse_yaml
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, Outcome, commands, overrides, records


def options(section: type = RunConfig, prefix: str = "") -> list[str]:
    """The dotted name of every option, and of every optional section, which can be there or not."""
    found, hints = [], get_type_hints(section)
    for field in fields(section):
        below, name = section_of(hints[field.name]), prefix + field.name
        if below is None or type(None) in get_args(hints[field.name]):
            found.append(name)
        if below is not None:
            found += options(below, f"{name}.")
    return found


def test_every_option_has_a_class() -> None:
    """A new option: say in resume_policy.py what its change means for a run that goes on."""
    assert [name for name in options() if kind_of(name) is None] == []


def test_every_class_is_of_an_option_or_a_section() -> None:
    known = options()
    assert [name for name in KINDS if not any(f"{o}.".startswith(f"{name}.") for o in known)] == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_dim", "fixed"),
        ("model.moe", "fixed"),
        ("seed", "fixed"),
        ("optim.betas", "training"),
        ("data.augment.mix_prob", "training"),
        ("train.duration", "training"),
        ("parallel.expert_exchange.communication_dtype", "training"),
        ("parallel.expert_exchange.overlap", "free"),
        ("checkpoint.every", "free"),
        ("data.train", "free"),
        ("model.moe.backend", "free"),
        ("train.nothing", None),
    ],
)
def test_the_nearest_entry_counts(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def tree(*more: str) -> Any:
    return parse_yaml(dump_config(load_config(CONFIG, more)))


def test_a_configuration_is_itself_and_each_option_that_differs_is_named() -> None:
    assert changed_options(tree(), tree()) == []
    found = changed_options(
        tree(), tree("optim.betas=[0.9, 0.95]", "model.moe.num_experts=4", "data.augment={}")
    )
    assert [(change.name, change.kind) for change in found] == [
        ("model.moe.num_experts", "fixed"),
        ("data.augment", "training"),
        ("optim.betas", "training"),
    ]
    assert str(found[0]) == "model.moe.num_experts: 8 in the checkpoint, 4 now"
    assert str(found[1]) == "data.augment: none in the checkpoint, a section now"
    assert str(found[2]) == "optim.betas: [0.9, 0.999] in the checkpoint, [0.9, 0.95] now"


def test_a_dense_model_and_one_with_experts_differ_in_one_thing() -> None:
    assert [change.name for change in changed_options(tree(), tree("model.moe=null"))] == ["model.moe"]


def test_an_option_that_is_newer_than_the_checkpoint_had_its_default() -> None:
    before = tree()
    del before["optim"]["betas"], before["parallel"]["expert_exchange"], before["checkpoint"]
    every = "checkpoint.every=1 epochs"
    assert changed_options(before, tree(every)) == []
    found = changed_options(before, tree(every, "optim.betas=[0.9, 0.95]"))
    assert [change.name for change in found] == ["optim.betas"]


def test_an_option_that_is_gone_counts_as_training() -> None:
    before = tree()
    before["train"]["warp"] = 9
    assert [(change.name, change.kind) for change in changed_options(before, tree())] == [
        ("train.warp", "training")
    ]


def test_a_manifest_that_cannot_be_read_gives_way_to_the_one_before(tmp_path: Path) -> None:
    assert newest_manifest(tmp_path) is None
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08d}").mkdir()
        text = json.dumps({"format": 1, "step": step, "files": {}}) if step < 3 else "{"
        (tmp_path / f"step-{step:08d}" / "manifest.json").write_text(text)
    (tmp_path / "latest").write_text("step-00000003\n")
    found = newest_manifest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 2


# --- runs --------------------------------------------------------------------------------------------

LENGTH = ("train.duration=2 steps", "optim.warmup=1 steps")


@pytest.fixture(scope="module")
def lines(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of two steps, and then what became of attempts to go on with it, in order."""
    folder = tmp_path_factory.mktemp("changes")
    run = folder / "run"
    moved = folder / "moved"
    moved.symlink_to(shards)
    for split in ("train", "val"):
        pack(synthetic(256, 32, num_classes=10, image_size=32), split, folder / "other" / split)

    def line(*more: str, shards: Path = shards) -> list[str]:
        return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, run, *LENGTH, *more)]

    attempts: dict[str, list[str]] = {
        "first": line(),
        "fixed": line("model.drop_rate=0.3", "model.window_size=4", "seed=7", "--allow-change"),
        "training": line("train.duration=3 steps", "optim.base_lr=0.02"),
        "validation": line(f"data.val={folder}/other/val"),
        "free": line(
            "train.micro_batch_size=4", "parallel.ep_size=2", "checkpoint.every=5 steps", shards=moved
        ),
        "allowed": line("train.duration=3 steps", "--allow-change", shards=moved),
    }
    outcomes = run_on_ranks(commands, 2, list(attempts.values()))
    return {"run": run, **{name: [rank[i] for rank in outcomes] for i, name in enumerate(attempts)}}


Refused = Callable[[str], str]


@pytest.fixture
def refused(lines: dict[str, Any]) -> Refused:
    def said(name: str) -> str:
        outcomes: list[Outcome] = lines[name]
        assert [outcome.code for outcome in outcomes] == [2, 2]
        assert outcomes[0].err.count("\n") == 1
        assert outcomes[1].err == ""
        return outcomes[0].err

    return said


def test_another_model_is_refused_whatever_is_allowed(refused: Refused) -> None:
    error = refused("fixed")
    assert error.startswith("ConfigError: ")
    assert "is of another run: model.window_size: 2 in the checkpoint, 4 now; seed: 0 in the" in error
    assert "drop_rate" not in error
    assert "Nothing overrides this" in error


def test_training_options_need_the_flag(refused: Refused) -> None:
    error = refused("training")
    assert "optim.base_lr: 0.01 in the checkpoint, 0.02 now" in error
    assert "train.duration: 2 steps in the checkpoint, 3 steps now" in error
    assert "--allow-change" in error


def test_another_validation_split_needs_the_flag(refused: Refused) -> None:
    assert "data.val: manifest " in refused("validation")


def test_layout_and_places_are_free(lines: dict[str, Any]) -> None:
    assert [outcome.code for outcome in lines["free"]] == [0, 0], lines["free"][0].err


def test_what_is_allowed_is_said_and_done(lines: dict[str, Any]) -> None:
    first, second = lines["allowed"]
    assert (first.code, second.code) == (0, 0), first.err
    said = "train.duration: 2 steps in the checkpoint, 3 steps now"
    assert said in first.out
    assert said not in second.out
    assert [record["step"] for record in records(lines["run"]) if "loss" in record] == [1, 2, 3]
    config = load_config(lines["run"] / "config.yaml")
    assert config.train == replace(config.train, duration="3 steps")
