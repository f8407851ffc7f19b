"""The recipes of distillation: coherent, with the published rates, students that fine-tuning loads."""

from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.validation.rules import problems

FILES = {path.stem: path for path in sorted((Path(__file__).parents[4] / "configs" / "fd").glob("*.yaml"))}
STUDENTS = [name for name in FILES if "finetune" not in name]


@pytest.mark.parametrize("name", FILES)
def test_the_recipes_are_coherent(name: str) -> None:
    """16 ranks of 128 images."""
    config = load_config(str(FILES[name]))
    assert problems(config, 16, data=False) == []
    train, optim = config.train, config.optim
    assert (train.global_batch_size, train.duration) == (
        2048,
        "100 epochs" if "finetune" in name else "300 epochs",
    )
    assert optim.weight_decay == 0.05
    assert config.run_dir == f"runs/{name}"


@pytest.mark.parametrize("name", STUDENTS)
def test_students_are_pre_trained_as_published(name: str) -> None:
    config = load_config(str(FILES[name]))
    tuned = load_config("fd_finetune__swin_base__img224_window14")
    wanted = (2e-4, 1e-6, 1e-5) if "esvit" in name else (3e-4, 5e-7, 5e-6)
    assert (config.optim.base_lr, config.optim.warmup_lr, config.optim.min_lr) == wanted
    assert (config.optim.max_grad_norm, config.optim.warmup, config.optim.layer_decay) == (
        3.0,
        "10 epochs",
        1.0,
    )
    assert config.data.augment is None
    assert config.model.drop_path_rate == (0.2 if "clip" in name else 0.3)
    same = ("attention", "position_bias", "norm", "window_size", "image_size", "embed_dim", "depths")
    assert [getattr(config.model, one) for one in same] == [getattr(tuned.model, one) for one in same]
    assert (tuned.optim.layer_decay, tuned.model.drop_path_rate) == (0.8, 0.4)


def test_the_teacher_of_esvit_is_a_swin_of_the_same_size() -> None:
    config = load_config("fd_esvit__swin_base__img224_window14")
    teacher = load_config(config.distill.teacher.model).model  # type: ignore[attr-defined]
    assert (teacher.attention, teacher.norm, teacher.window_size) == ("dot", "pre", 14)
    assert teacher.stage_resolution(3) == config.model.stage_resolution(3) == (7, 7)
