"""What the planner says of MoBY: two views by a pass each, the target network, the heads; and the recipes."""

from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.plan.base.hardware import load_hardware
from launcher.plan.memory.activations import activations_of
from launcher.plan.memory.estimate import predict_memory
from launcher.plan.time.compute_cost import compute_cost
from launcher.tasks.moby.options import MoBYOptions
from launcher.tasks.registry import model_on_meta
from launcher.training.schedules import Schedule
from launcher.validation.rules import problems
from swin_moe.backbone.flops import count_parameters
from tests.launcher.running import CONFIG
from tests.launcher.tasks.moby.runs import options

CONFIGS = Path(__file__).parents[4] / "configs"
FILES = {path.stem: path for path in sorted((CONFIGS / "moby").glob("moby__*.yaml"))}
SWIN_TINY = 27_519_354  # without a classifier


def small(*more: str) -> RunConfig:
    return load_config(CONFIG, options(Path("shards"), Path("run"), *more))


@pytest.mark.long
def test_two_views_take_what_twice_the_images_do() -> None:
    """Of 4 samples and of 8 images: the maps are the same, the position biases are computed twice.

    A pass that is not counted, or counted elsewhere, would be half of it.
    """
    both = activations_of(small("train.micro_batch_size=4"), small().parallel.dims(1), "cpu")
    images = small("train.micro_batch_size=8", "task=simmim", "simmim.mask_patch_size=4")
    plain = activations_of(images, images.parallel.dims(1), "cpu")
    for part in ("patch embedding", "stage 0", "stage 1"):
        assert dict(both.saved)[part] == pytest.approx(dict(plain.saved)[part], rel=0.2)


def test_the_target_network_is_counted() -> None:
    """Complete on each rank, without the predictor, and its average."""
    config = small("model.moe=null")
    model = model_on_meta(config)
    target = count_parameters(model) - count_parameters(model.get_submodule("predictor"))
    items = dict(predict_memory(config, [1], "cpu").items)
    assert items["teacher"] == 4 * target
    assert items["teacher's average"] == pytest.approx(4 * target, rel=0.01)
    work = compute_cost(config, load_hardware("a100-40")).work
    assert [part.name for part in work.parts][-1] == "projector and predictor"


@pytest.mark.parametrize("name", FILES)
def test_the_recipes_are_coherent(name: str) -> None:
    """8 ranks of 64 images, whose batch norms span all 512; the published learning rates."""
    config = load_config(str(FILES[name]))
    assert problems(config, 8, data=False) == []
    errors = problems(config, 4, data=False)  # of experts on 8 ranks too, where there are any
    assert any("moby.head.norm_group_images (512) spans 8 ranks" in error for error in errors)
    moby, train = options_of(config, MoBYOptions), config.train
    assert (moby.queue, moby.temperature, moby.momentum) == (4096, 0.2, 0.99)
    assert config.train.duration == ("100 epochs" if name.endswith("100ep") else "300 epochs")
    schedule = Schedule(
        config.optim,
        global_batch_size=train.global_batch_size,
        total_steps=300 * 2502,  # 1,281,167 images
        steps=lambda text: int(text.split()[0]) * 2502,
    )
    assert (schedule(0), schedule(5 * 2502)) == pytest.approx((5e-7, 1e-3))
    assert schedule(300 * 2502) == pytest.approx(5e-6)
    assert (config.optim.weight_decay, config.optim.max_grad_norm) == (0.05, 5.0)
    assert (config.optim.optimizer, config.model.drop_path_rate) == ("adamw", 0.2)
    assert (config.data.crop_scale, config.data.flip_probability) == ((0.08, 1.0), 0.5)


def test_the_published_model_has_the_published_size() -> None:
    """Encoder, projector and predictor of Swin-T."""
    model = model_on_meta(load_config(str(FILES["moby__swin_tiny__img224_window7__300ep"])))
    assert count_parameters(model) == SWIN_TINY + 4_206_848 + 2_109_696


def test_the_recipe_in_minutes() -> None:
    config = load_config(str(CONFIGS / "recipes" / "fashion_moby.yaml"))
    for ranks in (1, 2):
        assert problems(config, ranks, data=False) == []
