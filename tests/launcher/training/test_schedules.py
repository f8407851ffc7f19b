"""Every schedule at points worked by hand: peak 1.0, warm-up of ten steps from 0.1, 110 steps in all."""

import math
from typing import Any

import pytest
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from launcher.config.schema import OptimConfig, TrainConfig
from launcher.training.schedules import Schedule, ema_momentum


def schedule(
    global_batch_size: int = 512, warmup_steps: int = 10, total_steps: int = 110, **options: Any
) -> Schedule:
    config = OptimConfig(
        base_lr=1.0,
        warmup_lr=0.1,
        min_lr=0.2,
        warmup=f"{warmup_steps} steps",
        decay_every="30 steps",
        **options,
    )
    return Schedule(
        config,
        global_batch_size=global_batch_size,
        total_steps=total_steps,
        steps=lambda text: int(text.split()[0]),
    )


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),  # warm-up starts at warmup_lr
        (5, 0.55),  # 0.1 + 0.9 * 5 / 10
        (9, 0.91),
        (10, 1.0),  # its end is the peak
        (35, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2),  # a quarter: cos(pi / 4)
        (60, 0.6),  # half: cos(pi / 2) = 0, so the mean of 1.0 and 0.2
        (110, 0.2),  # the end
        (200, 0.2),  # and beyond
    ],
)
def test_warm_up_and_half_cosine(step: int, rate: float) -> None:
    assert schedule()(step) == pytest.approx(rate)


def test_the_last_step_is_one_short_of_the_end() -> None:
    # steps count from 0, so that the last of 110 is number 109: 0.2 + 0.8 * (1 + cos(0.99 pi)) / 2
    assert schedule()(109) == pytest.approx(0.2 + 0.4 * (1 + math.cos(0.99 * math.pi)))


@pytest.mark.parametrize(("batch", "factor"), [(512, 1), (1024, 2), (64, 0.125)])
def test_rates_are_scaled_by_the_global_batch(batch: int, factor: float) -> None:
    for step in (0, 5, 10, 60, 110):
        assert schedule(batch)(step) == pytest.approx(factor * schedule()(step))


def test_without_warm_up_and_warm_up_alone() -> None:
    assert schedule(warmup_steps=0)(0) == pytest.approx(1.0)
    assert schedule(warmup_steps=0, total_steps=100)(50) == pytest.approx(0.6)
    assert schedule(warmup_steps=10, total_steps=10)(9) == pytest.approx(0.91)


@pytest.mark.parametrize(
    ("shape", "step", "rate"),
    [
        ("linear", 10, 1.0),
        ("linear", 35, 0.7525),  # a quarter of the way from 1.0 to 0.01
        ("linear", 60, 0.505),
        ("linear", 110, 0.01),
        ("step", 10, 1.0),  # 10 // 30 = 0: the warm-up counts
        ("step", 29, 1.0),
        ("step", 30, 0.1),
        ("step", 59, 0.1),
        ("step", 60, 0.01),
        ("step", 109, 1e-3),  # 109 // 30 = 3
        ("multistep", 69, 1.0),
        ("multistep", 70, 0.1),
        ("multistep", 99, 0.1),
        ("multistep", 100, 0.01),
    ],
)
def test_the_other_shapes(shape: str, step: int, rate: float) -> None:
    at = {"decay_at": ("100 steps", "70 steps")} if shape == "multistep" else {}
    found = schedule(schedule=shape, **at)
    assert found(step) == pytest.approx(rate)
    assert found(5) == pytest.approx(0.55)
    assert schedule(64, schedule=shape, **at)(step) == pytest.approx(rate / 8)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        # 6e-5 (1 - t / 160000) (1 - (1 - t / 1500) (1 - 1e-6)), the recipe of UPerNet on Swin
        (0, 6e-11),  # 6e-5 * 1e-6
        (1, 4.00597e-8),  # 6e-5 * (1 - 1 / 160000) * (1e-6 + (1 - 1e-6) / 1500)
        (750, 2.985940e-5),  # 6e-5 * 0.9953125 * 0.5000005
        (1499, 5.939825e-5),
        (1500, 5.94375e-5),  # 6e-5 * (1 - 1500 / 160000)
        (80000, 3e-5),
        (159999, 3.75e-10),
        (160000, 0.0),
        (170000, 0.0),
    ],
)
def test_poly_multiplied_by_its_warm_up(step: int, rate: float) -> None:
    """base_lr is for 512 images: 1.92e-3 * 16 / 512 = 6e-5."""
    options = OptimConfig(
        base_lr=1.92e-3, min_lr=0.0, schedule="poly", warmup="1500 steps", warmup_ratio=1e-6
    )
    found = Schedule(options, global_batch_size=16, total_steps=160_000, steps=lambda text: 1500)
    assert found(step) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "step", "rate"),
    [
        ({"poly_power": 2.0}, 55, 0.4),  # 0.2 + 0.8 * (1 - 55 / 110)^2
        ({"poly_power": 0.5}, 55, 0.2 + 0.8 * math.sqrt(0.5)),
        ({}, 5, 0.55),  # from warmup_lr to the peak: 0.1 + 0.9 * 5 / 10
        ({}, 11, 0.92),  # poly runs from the first step: 0.2 + 0.8 * (1 - 11 / 110)
        ({"warmup_ratio": 0.0}, 0, 0.0),
        # Video Swin's: half a cosine from the first step, times 1 - 0.9 (1 - t / 10)
        ({"schedule": "cosine", "warmup_ratio": 0.1}, 0, 0.1),
        ({"schedule": "cosine", "warmup_ratio": 0.1}, 5, 0.55 * (0.6 + 0.4 * math.cos(math.pi * 5 / 110))),
        ({"schedule": "cosine", "warmup_ratio": 0.1}, 55, 0.6),
        ({"schedule": "linear", "warmup_ratio": 0.1}, 5, 0.55 * 0.955),  # 1 - 0.99 * 5 / 110
    ],
)
def test_poly_and_multiplied_warm_ups(options: dict[str, Any], step: int, rate: float) -> None:
    assert schedule(**{"schedule": "poly", **options})(step) == pytest.approx(rate)


def test_the_warm_up_hides_the_beginning_of_a_multistep_schedule() -> None:
    # SimMIM's 800 epochs in small: warm-up 10, x 0.1 at 700
    found = schedule(total_steps=800, schedule="multistep", decay_at=("700 steps",))
    assert [found(step) for step in (10, 699, 700, 799)] == pytest.approx([1.0, 1.0, 0.1, 0.1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "multistep"}, "belongs to optim.schedule=multistep"),
        ({"decay_at": ("3 epochs",)}, "belongs to optim.schedule=multistep .got cosine"),
        ({"layer_decay": 0.0}, r"optim.layer_decay .0.0. must lie in .0, 1."),
        ({"backbone_lr_scale": 1.1}, r"optim.backbone_lr_scale .1.1. must lie in .0, 1."),
        ({"decay_rate": 1.5}, r"optim.decay_rate .1.5. must lie in"),
        ({"warmup_ratio": 1.5}, r"optim.warmup_ratio .1.5. must lie in .0, 1."),
        ({"poly_power": 0.0}, r"optim.poly_power"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)


@pytest.mark.parametrize(("gamma", "power"), [(1.0, 2 / 3), (1.0, 0.75), (10.0, 1.0), (0.5, 2.0)])
def test_the_warm_up_of_the_average_is_timms(gamma: float, power: float) -> None:
    """timm counts a step as we do: the first update has number 1, and copies the weights."""
    options = {"ema_warmup": True, "ema_warmup_gamma": gamma, "ema_warmup_power": power}
    decay = ema_momentum(TrainConfig(ema_decay=0.999, **options))  # type: ignore[arg-type]
    theirs = ModelEmaV3(nn.Linear(1, 1), decay=0.999, use_warmup=True, warmup_gamma=gamma, warmup_power=power)
    assert decay is not None
    steps = [*range(1, 50), 100, 1000, 31_624, 10**6, 10**9]
    assert [decay(step) for step in steps] == [theirs.get_decay(step) for step in steps]


def test_the_average_after_some_steps_is_timms() -> None:
    """timm's average of a linear layer whose weight is set to 1, 2, 3 ..., and ours by hand."""
    decay = ema_momentum(TrainConfig(ema_decay=0.8, ema_warmup=True, ema_warmup_gamma=2.0))
    assert decay is not None
    model = nn.Linear(1, 1, bias=False).double()
    theirs = ModelEmaV3(model, decay=0.8, use_warmup=True, warmup_gamma=2.0)
    ours = model.weight.item()
    for step in range(1, 12):
        nn.init.constant_(model.weight, step)
        theirs.update(model, step)
        ours = decay(step) * ours + (1 - decay(step)) * step
        assert ours == pytest.approx(theirs.module.weight.item(), rel=1e-12)


def test_without_a_warm_up_the_decay_is_constant_and_without_a_decay_there_is_no_average() -> None:
    decay = ema_momentum(TrainConfig(ema_decay=0.9))
    assert decay is not None
    assert [decay(step) for step in (1, 2, 1000)] == [0.9] * 3
    assert ema_momentum(TrainConfig()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_warmup": True}, r"train.ema_warmup \(True\) needs train.ema_decay \(0.0\) above 0"),
        ({"ema_warmup_gamma": 0.0}, r"train.ema_warmup_gamma \(0.0\) must be at least"),
        ({"ema_warmup_power": 0.0}, r"train.ema_warmup_power \(0.0\) must be at least"),
    ],
)
def test_a_warm_up_that_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)
