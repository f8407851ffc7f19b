"""The recipes of segmentation: coherent on 8 ranks, of the published sizes and learning rates."""

from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import load_hardware
from launcher.plan.time.compute_cost import compute_cost
from launcher.tasks.registry import model_on_meta
from launcher.tasks.segmentation.options import SegmentationOptions
from launcher.training.schedules import Schedule
from launcher.validation.rules import problems
from swin_moe.backbone.flops import count_parameters
from tests.launcher.tasks.recipe_checks import assert_position_biases_of, assert_told_to_pack

CONFIGS = Path(__file__).parents[4] / "configs"
FILES = {path.stem: path for path in sorted((CONFIGS / "segmentation").glob("*.yaml"))}
PARAMETERS = {  # of 150 classes: backbone with four norms, decode head, auxiliary head
    "upernet_swin_tiny_512": 59_941_862,
    "upernet_swin_small_512": 81_259_766,
    "upernet_swin_base_512": 121_279_716,
    "upernet_swin_base_640_22k": 121_415_076,
    "upernet_swin_large_640_22k": 233_962_976,
}


def read(name: str) -> RunConfig:
    return load_config(str(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_the_recipes_are_coherent(name: str) -> None:
    """8 ranks of 2 images: the batch norms span all 16."""
    config = read(name)
    assert problems(config, 8, data=False) == []
    errors = problems(config, 4, data=False)  # of experts on 8 ranks too, where there are any
    assert any("segmentation.head.norm_group_images (16) spans 8 ranks" in error for error in errors)
    schedule = Schedule(
        config.optim,
        global_batch_size=config.train.global_batch_size,
        total_steps=160_000,
        steps=lambda text: int(text.split()[0]),
    )
    assert config.train.duration == "160000 steps"
    assert schedule(1500) == pytest.approx(5.94375e-5)
    assert (config.optim.decay_rule, config.optim.weight_decay, config.optim.max_grad_norm) == (
        "dense",
        0.01,
        0.0,
    )
    assert config.train.pretrained_require == "backbone"
    side, options = config.model.image_sides[0], getattr(config, "segmentation", SegmentationOptions())
    assert (options.short_side, options.long_side) == (side, 4 * side)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("upernet_swin_moe_small_8expert_512", "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"),
        *((f"upernet_swinv2_{s}_512", f"swinv2_{s}_patch4_window8_256") for s in ("tiny", "small", "base")),
    ],
)
def test_position_biases_are_those_of_the_classifiers(name: str, classifier: str) -> None:
    assert_position_biases_of(read(name).model, classifier)


@pytest.mark.parametrize("name", PARAMETERS)
def test_their_models_have_the_published_sizes(name: str) -> None:
    assert count_parameters(model_on_meta(read(name))) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_planner_plans_them(name: str) -> None:
    assert compute_cost(read(name), load_hardware("a100-40")).multiply_adds > 2e11


def test_the_recipe_in_minutes() -> None:
    config = load_config(str(CONFIGS / "recipes" / "fashion_segmentation.yaml"))
    for ranks in (1, 2):
        assert problems(config, ranks, data=False) == []


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("fashion_segmentation", "--source fashion-canvas --out data/fashion-canvas"),
        ("upernet_swin_tiny_512", "--source ade20k --directory ADEChallengeData2016 --out data/ade20k"),
        (
            "upernet_swin_tiny_512 data.train=mine/train data.val=mine/val",
            "--source members --directory FOLDER --member image=images --member mask=masks:label_image "
            "--out mine",
        ),
    ],
)
def test_without_its_data_a_recipe_says_how_to_make_them(
    capsys: pytest.CaptureFixture[str], recipe: str, command: str
) -> None:
    assert_told_to_pack(capsys, recipe, command)
