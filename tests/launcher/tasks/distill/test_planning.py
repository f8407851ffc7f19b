"""The planner counts a teacher that is another model than the student: memory, time, no exchange."""

from pathlib import Path
from typing import Any

import pytest

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import load_hardware
from launcher.plan.memory.activations import activations_of
from launcher.plan.memory.estimate import predict_memory
from launcher.plan.time.compute_cost import compute_cost
from launcher.plan.time.estimate import predict_time
from launcher.plan.time.traffic import traffic
from swin_moe.backbone.flops import cost
from tests.launcher.running import CONFIG
from tests.launcher.tasks.distill.teachers import TEACHER, line, write_teacher
from tests.swin_moe.teachers.folders import make, write

# parameters of a backbone: those of the classifier without its head, 16 x 10 + 10
ELEMENTS = cost(TEACHER).parameters - 170


def config_of(tmp_path: Path, teacher: Path, *more: str, task: str = "distill") -> RunConfig:
    _, _, _, _, *options = line(tmp_path, tmp_path / "run", teacher, *more, task=task)
    return load_config(CONFIG, options)


def test_its_memory(tmp_path: Path) -> None:
    """Complete on each rank in the precision of the run, at any stage; no average; the peak of its pass."""
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    config = config_of(tmp_path, teacher, "parallel.zero_stage=3", "train.precision=bf16", "model.moe=null")
    items: dict[str, Any] = dict(predict_memory(config, [2], "cpu").items)
    assert items["teacher"] == 2 * ELEMENTS
    assert "teacher's average" not in items
    found = activations_of(config, config.parallel.dims(1), "cpu")
    (moment,) = (one for one in found.forward if one.part == "teacher")
    batch = 8 * 3 * 16 * 16 * 4  # of the student's images
    assert moment.peak > batch + 8 * 4 * 4 * 8 * 2  # and the teacher's first map at least


def test_its_time(tmp_path: Path) -> None:
    """Multiply-adds as flops.py counts them, of the classifier without its head. No rank sends for it."""
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    config = config_of(tmp_path, teacher, "parallel.ep_size=2")
    hardware = load_hardware("h200")
    counted = compute_cost(config, hardware)
    assert counted.teacher_multiply_adds == pytest.approx(cost(TEACHER).flops - 160)
    seconds = counted.compute_s(config, config.parallel.dims(2))
    assert seconds["teacher"] > 0
    names = [one.name for one in traffic(config, [2], counted.work)]
    assert not [name for name in names if "teacher" in name]
    assert predict_time(config, [2], hardware, counted).mfu > 0


@pytest.mark.parametrize("kind", ["ViTModel", pytest.param("Swinv2Model", marks=pytest.mark.slow)])
def test_a_folder_of_transformers(tmp_path: Path, kind: str) -> None:
    """A ViT by hand: 16 patches of 8 x 8 x 3, and two layers of 17 tokens, 16 channels and an MLP of 24."""
    teacher = write(make(kind), tmp_path / "teacher")
    config = config_of(tmp_path, teacher, "distill.resize=bilinear", "model.moe=null")
    found = compute_cost(config, load_hardware("a100-40")).teacher_multiply_adds
    layer = 17 * 16 * 16 * 4 + 2 * 17 * 17 * 16 + 2 * 17 * 16 * 24
    by_hand = 16 * 16 * 3 * 64 + 2 * layer
    assert found == by_hand if kind == "ViTModel" else found > 0
    assert dict(predict_memory(config, [1], "cpu").items)["teacher"] > 0


def test_the_logits_of_a_teacher(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    config = config_of(tmp_path, teacher, "model.moe=null", task="distill_logits")
    counted = compute_cost(config, load_hardware("a100-40"))
    assert counted.teacher_multiply_adds == pytest.approx(cost(TEACHER).flops)
    assert dict(predict_memory(config, [1], "cpu").items)["teacher"] == 4 * cost(TEACHER).parameters
