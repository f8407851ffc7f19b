"""Every schedule at points worked by hand: peak 1.0, warm-up of ten steps from 0.1, 110 steps in all."""

import math
from typing import Any

import pytest

from launcher.config.schema import OptimConfig
from launcher.training.schedules import Schedule


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
        ({"decay_rate": 1.5}, r"optim.decay_rate .1.5. must lie in"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)
