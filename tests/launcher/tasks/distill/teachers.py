"""Teachers for runs of distillation, and the options of these runs."""

from pathlib import Path

from swin_moe.backbone.model import build_model
from swin_moe.config import ModelConfig
from swin_moe.weights.export import save_weights
from swin_moe.weights.input_spec import InputSpec
from tests.launcher.running import overrides
from tests.launcher.tasks.layouts import plain_sgd, task_line
from tests.models import add_noise

STEPS, LR = 3, 0.1
TEACHER = ModelConfig(
    image_size=16, num_classes=10, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=2
)
INPUTS = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), eval_crop=1.0)
SGD = plain_sgd(LR, STEPS)


def write_teacher(path: Path, config: ModelConfig = TEACHER, *, seed: int = 0) -> Path:
    """A file of ours with random weights."""
    model = add_noise(build_model(config, seed=seed), 0.1, seed=seed)
    return save_weights(model, path, "native", INPUTS)


def line(shards: Path, run_dir: Path, teacher: Path, *more: str, task: str = "distill") -> list[str]:
    """A run of `CONFIG` (with experts) on 16 x 16 pixels: 4 x 4 tokens, then 2 x 2, as the teacher's."""
    groups = "model.moe.routing_group_images=2"  # which every layout's micro-batch holds
    own = [f"task={task}", "data.augment=null", f"{task}.teacher.weights={teacher}", *SGD, groups, *more]
    return task_line(overrides(shards, run_dir, *own))
