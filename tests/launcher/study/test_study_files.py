"""The studies of configs/studies: they pass a dry run, and what they cost agrees with what is published."""

from pathlib import Path

import pytest

from launcher.study.grid.cost import costs_of
from launcher.study.grid.file import load_study_file
from launcher.study.grid.resolve import StudyPlan, resolve
from launcher.validation.rules import problems

STUDIES = Path(__file__).parents[3] / "configs" / "studies"


def plan(name: str) -> StudyPlan:
    path = STUDIES / f"{name}.yaml"
    file = load_study_file(path)
    return resolve(path, file, file.nproc, data=False)


@pytest.mark.parametrize(
    ("name", "trials"),
    [
        ("fashion_capacity", 2 * (3 * 2 * 2 + 1)),  # seeds x (capacities x top-k x order + dense)
        ("imagenet22k_capacity", 2 * (4 * 2 * 2 + 1)),  # sizes x the same
        ("experts_scaling", 6 + 4),  # S with six numbers of experts, B with four
    ],
)
def test_every_shipped_study_is_a_valid_grid(name: str, trials: int) -> None:
    found = plan(name)
    assert len(found.trials) == trials
    assert found.warnings == ()
    assert all(
        problems(planned.config, load_study_file(STUDIES / f"{name}.yaml").nproc, data=False) == []
        for planned in found.trials
    )
    assert sorted(path.stem for path in STUDIES.glob("*.yaml")) == [
        "experts_scaling",
        "fashion_capacity",
        "imagenet22k_capacity",
    ]


@pytest.mark.long
def test_the_models_of_experts_scaling_are_those_of_the_paper() -> None:
    found = plan("experts_scaling")
    costs = costs_of(found.trials, 14_197_122)
    # millions of parameters: Swin-MoE-S dense, E8 to E128, then B (Hwang et al. 2022)
    published = {
        "embed_dim=96,num_experts=8": 173.3,
        "embed_dim=96,num_experts=16": 296.1,
        "embed_dim=96,num_experts=32": 541.8,
        "embed_dim=96,num_experts=64": 1033,
        "embed_dim=96,num_experts=128": 2016,
        "embed_dim=128,num_experts=8": 300.3,
        "embed_dim=128,num_experts=16": 518.7,
        "embed_dim=128,num_experts=32": 955.3,
        "embed_dim=96,moe=none": 65.8,
        "embed_dim=128,moe=none": 109.3,
    }
    for name, millions in published.items():
        assert costs[f"{name},seed=0"].model.parameters / 1e6 == pytest.approx(millions, rel=1e-3)
        assert costs[f"{name},seed=0"].steps == 311_949  # ceil(90 x 14,197,122 / 4096)
