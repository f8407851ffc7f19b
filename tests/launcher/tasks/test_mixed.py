"""A task on two splits with fixed shares (tests/mixed_task.py): ranks, a kill, what `check` refuses."""

from functools import partial
from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.validation.elastic import batch_unit, replan
from launcher.validation.rules import problems
from tests.distributed import RankError, run_on_ranks
from tests.launcher.packed import pack_synthetic
from tests.launcher.running import CONFIG, command, only, overrides, run_alone, steps
from tests.launcher.tasks.layouts import task_line

STEPS = 4
FIGURES = ("step", "loss", "total_loss", "labelled", "entropy", "lr", "grad_norm")
MIXED = (
    "task=tests.mixed_task:SPEC",
    "data.augment=null",
    "model.moe.routing_group_images=1",
    "train.global_batch_size=20",
    f"train.duration={STEPS} steps",
    f"train.eval_every={STEPS} steps",
    "checkpoint.every=1 steps",
)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images in two shards: two and a half steps."""
    out = tmp_path_factory.mktemp("unlabelled")
    return pack_synthetic(out, 40, 1, image_size=32, samples_per_shard=20) / "train"


def options(shards: Path, unlabelled: Path, run_dir: Path | str, micro: int, *more: str) -> list[str]:
    split = f"mixed.unlabelled={unlabelled}"
    return overrides(shards, run_dir, *MIXED, split, f"train.micro_batch_size={micro}", *more)


def line(shards: Path, unlabelled: Path, run_dir: Path, micro: int, *more: str) -> list[str]:
    options_of_run = options(shards, unlabelled, run_dir, micro, *more)
    return task_line(options_of_run)


@pytest.mark.parametrize("sets", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_ranks_and_a_kill_do_not_show(shards: Path, unlabelled: Path, tmp_path: Path, sets: int) -> None:
    """The labelled images are of one set, or of two with weights."""
    places = {"large": shards / "train", "small": shards / "val"}
    weighted = ", ".join(f"{name}: {{path: {place}}}" for name, place in places.items())
    more = (f"data.train={{{weighted}}}",) if sets == 2 else ()
    run_alone(*line(shards, unlabelled, tmp_path / "alone", 10, *more))
    layout = ("parallel.zero_stage=2", "parallel.ep_size=2", *more)
    killed = line(shards, unlabelled, tmp_path / "run", 5, *layout)
    with pytest.raises(RankError, match="died"):
        run_on_ranks(partial(command, kill=("step", 3)), 2, *killed)
    run_alone(*line(shards, unlabelled, tmp_path / "run", 20, *more))
    for record, wanted in zip(steps(tmp_path / "run"), steps(tmp_path / "alone"), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(wanted, FIGURES), rel=1e-5)
        assert record["loss"] == pytest.approx(record["labelled"] + record["entropy"], rel=1e-6)


def test_check_knows_the_parts(shards: Path, unlabelled: Path, tmp_path: Path) -> None:
    def found(split: Path, micro: int, *more: str) -> list[str]:
        return problems(load_config(CONFIG, options(shards, split, "run", micro, *more)), 1)

    assert found(unlabelled, 10) == []
    assert found(unlabelled, 4) == [
        "train.micro_batch_size (4) must be a multiple of 5, the sum of the shares labelled : unlabelled = "
        "1 : 4; nearest: 5"
    ]
    assert found(unlabelled, 5, "model.moe.routing_group_images=5") == [
        "model.moe.routing_group_images (5) must divide the 1 samples of labelled in a micro-batch of 5",
        "model.moe.routing_group_images (5) must divide the 4 samples of unlabelled in a micro-batch of 5",
    ]
    (missing,) = found(tmp_path / "none", 10)
    assert missing.startswith(f"mixed.unlabelled: {tmp_path}/none")
    (cache,) = [
        one for one in found(unlabelled, 10, "data.cache=cache", "data.cache_gib=1e-4") if "mixed" in one
    ]
    assert cache.endswith("the largest shard of mixed.unlabelled")
    (tars, *_) = found(unlabelled, 10, f"data.train={shards}/train/000000.tar")
    assert tars.startswith(f"data.train ({shards}/train/000000.tar) must be shards with a manifest")


@pytest.mark.parametrize(("groups", "unit"), [(1, 5), (2, 10), (4, 20)])
def test_a_micro_batch_has_complete_groups_of_each_part(groups: int, unit: int, unlabelled: Path) -> None:
    """Shares of 1 and 4 with groups of 2: at least 2 and 8 images. Other ranks get such a micro-batch."""
    group = f"model.moe.routing_group_images={groups}"
    more = (group, "train.global_batch_size=80")
    config = load_config(CONFIG, options(Path("shards"), unlabelled, "run", 40, *more))
    assert batch_unit(config) == unit
    planned, _ = replan(config, 4)
    assert planned.train.micro_batch_size == 20
