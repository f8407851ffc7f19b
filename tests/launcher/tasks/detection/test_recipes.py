"""The recipes of detection: coherent on 8 ranks, of the published sizes and learning rates."""

from pathlib import Path

import pytest

from launcher.cli.models import row
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import load_hardware
from launcher.plan.time.compute_cost import compute_cost
from launcher.tasks.detection.cost import PUBLISHED
from launcher.tasks.detection.options import DetectionOptions
from launcher.tasks.registry import model_on_meta
from launcher.training.schedules import Schedule
from launcher.validation.rules import problems
from swin_moe.backbone.flops import count_parameters
from tests.launcher.refusals import refused
from tests.launcher.tasks.recipe_checks import assert_position_biases_of, assert_told_to_pack

CONFIGS = Path(__file__).parents[4] / "configs"
FILES = {path.stem: path for path in sorted((CONFIGS / "detection").glob("*.yaml"))}
STEPS_AN_EPOCH = 7330  # of 117,266 images, 16 a step
PARAMETERS = {  # of 80 classes
    "mask_rcnn_swin_tiny_1x": 47_794_602,
    "mask_rcnn_swin_small_3x": 69_112_506,
    "cascade_mask_rcnn_swin_tiny_3x": 85_629_804,
    "cascade_mask_rcnn_swin_small_3x": 106_947_708,
    "cascade_mask_rcnn_swin_base_3x": 144_977_002,
}


def read(name: str, *overrides: str) -> RunConfig:
    return load_config(str(FILES[name]), overrides)


@pytest.mark.parametrize("name", FILES)
def test_the_recipes_are_coherent(name: str) -> None:
    config = read(name)
    assert problems(config, 8, data=False) == []
    epochs = 12 if name.endswith("1x") else 36
    assert config.train.duration == f"{epochs} epochs"
    schedule = Schedule(
        config.optim,
        global_batch_size=config.train.global_batch_size,
        total_steps=epochs * STEPS_AN_EPOCH,
        steps=lambda text: int(text.split()[0]) * (STEPS_AN_EPOCH if "epoch" in text else 1),
    )
    first, second = (8, 11) if epochs == 12 else (27, 33)
    wanted = {0: 1e-7, 500: 1e-4, first * STEPS_AN_EPOCH - 1: 1e-4, first * STEPS_AN_EPOCH: 1e-5}
    wanted |= {second * STEPS_AN_EPOCH: 1e-6}
    assert {step: schedule(step) for step in wanted} == pytest.approx(wanted)
    optim = config.optim
    assert (optim.decay_rule, optim.weight_decay, optim.max_grad_norm) == ("dense", 0.05, 0.0)
    assert config.train.pretrained_require == "backbone"
    options = getattr(config, "detection", DetectionOptions())
    several = tuple(range(480, 801, 32))
    assert (options.short_sides, options.crop_probability) == (
        ((800,), 0.0) if epochs == 12 else (several, 0.5)
    )


def test_groups_of_batch_norms_must_fit_the_ranks() -> None:
    config = read("cascade_mask_rcnn_swin_tiny_1x", "detection.head.norm_group_images=16")
    (error,) = problems(config, 8, data=False)
    assert "detection.head.norm_group_images (16) spans 16 ranks" in error
    assert problems(config, 16, data=False) == []


def test_micro_batches_need_one_canvas() -> None:
    name = "mask_rcnn_swin_tiny_1x"
    errors = "\n".join(problems(read(name, "train.micro_batch_size=2"), 8, data=False))
    assert "train.micro_batch_size (2) must be 1 where images have canvases of several sizes" in errors
    one = read(name, "train.micro_batch_size=2", "detection.canvases=[[1344,1344]]")
    assert problems(one, 8, data=False) == []


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("mask_rcnn_swin_moe_small_8expert_3x", "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"),
        *(
            (f"cascade_mask_rcnn_swinv2_{size}_3x", f"swinv2_{size}_patch4_window16_256")
            for size in ("tiny", "small", "base")
        ),
    ],
)
def test_position_biases_are_those_of_the_classifiers(name: str, classifier: str) -> None:
    assert_position_biases_of(read(name).model, classifier)


@pytest.mark.parametrize("name", PARAMETERS)
def test_their_models_have_the_published_sizes(name: str) -> None:
    assert count_parameters(model_on_meta(read(name))) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_cost_what_was_published(name: str) -> None:
    """As `swin-moe models` compares them."""
    assert row(name).agrees


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_planner_plans_them(name: str) -> None:
    assert compute_cost(read(name), load_hardware("a100-40")).multiply_adds > 2e11


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detection.short_sides=[]", "detection.short_sides ([]) must be one or more numbers"),
        ("detection.short_sides=[1400]", "must be at most detection.long_side (1333)"),
        ("detection.eval_short_side=1400", "detection.eval_short_side (1400) must be at most"),
        ("detection.crop_sides=[600, 384]", "detection.crop_sides ([600, 384]) must be two numbers"),
        ("detection.canvases=[[0, 5]]", "detection.canvases"),
        ("detection.crop_probability=2.0", "detection.crop_probability (2.0) must be at most 1"),
        ("detection.head.roi_samples=2", "detection.head.roi_samples (2) must be at least 4"),
        ("data.eval_crop=0.5", "data.eval_crop (0.5) does nothing for task=detection"),
        ("data.match_classes=true", "data.match_classes (True) maps labels of images, not of objects"),
    ],
)
def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    assert message in refused(capsys, "check", str(FILES["mask_rcnn_swin_tiny_1x"]), override)


def test_the_recipe_in_minutes() -> None:
    config = load_config(str(CONFIGS / "recipes" / "fashion_detection.yaml"))
    for ranks in (1, 2):
        assert problems(config, ranks, data=False) == []


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("fashion_detection", "--source fashion-scenes --out data/fashion-scenes"),
        ("mask_rcnn_swin_tiny_1x", "--source coco --directory COCO --out data/coco"),
        (
            "mask_rcnn_swin_tiny_1x data.train=mine/train data.val=mine/val",
            "--source coco --directory COCO --out mine",
        ),
    ],
)
def test_without_its_data_a_recipe_says_how_to_make_them(
    capsys: pytest.CaptureFixture[str], recipe: str, command: str
) -> None:
    assert_told_to_pack(capsys, recipe, command)
