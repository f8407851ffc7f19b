"""What of a student is compared with the map of a teacher, and how. No torch."""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges
from swin_moe.config import ModelConfig
from swin_moe.errors import ModelError, require

MapResize = Literal["none", "bilinear", "pixel_shuffle"]
Grid = tuple[int, ...]  # height and width of a map, in tokens


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The student's map, the teacher's target, and the loss between them (Wei et al. 2022, section 3)."""

    stage: int | None = None  # of the student, whose map is compared; null: the last
    # how maps of two grids are compared. none: they must be equal; bilinear: the teacher's map is resized to
    # the student's; pixel_shuffle: a token of the student predicts all tokens of the teacher at its place
    resize: MapResize = "none"
    whiten: bool = True  # normalise each token of the target over its channels, without learned parameters
    beta: float = 2.0  # of the smooth L1 loss: quadratic below it, linear above

    def __post_init__(self) -> None:
        check_ranges("distill.", self, error=ModelError, beta=(1e-6, 1e6))
        require(self.stage is None or self.stage >= 0, f"distill.stage ({self.stage}) must be at least 0")


def student_stage(model: ModelConfig, config: DistillConfig) -> int:
    """The stage of the student whose map is compared.

    Raises:
        ModelError: it has no such stage.
    """
    last = len(model.depths) - 1
    stage = last if config.stage is None else config.stage
    require(
        stage <= last,
        f"distill.stage ({stage}) must be at most {last}: model.depths ({list(model.depths)}) has stages 0 "
        f"to {last}",
    )
    return stage


def has_normalised_map(model: ModelConfig, config: DistillConfig) -> bool:
    """Whether the backbone itself normalises the map that is compared.

    That is the last map of a Swin. The other maps, and all of an LR-Net, get a norm before the projector.
    """
    return student_stage(model, config) == len(model.depths) - 1 and model.lr_net is None


def tokens_per_side(student: Grid, teacher: Grid, config: DistillConfig) -> int:
    """The k x k tokens of the teacher that a token of the student predicts.

    Raises:
        ModelError: the grids do not go together.
    """
    if student == teacher or config.resize == "bilinear":
        return 1
    found = f"the student's map has {_text(student)} tokens, and the teacher's {_text(teacher)}"
    factor = teacher[0] // student[0]
    fits = factor > 1 and (student[0] * factor, student[1] * factor) == teacher
    if config.resize == "pixel_shuffle":
        require(fits, f"distill.resize (pixel_shuffle) needs a multiple of the student's tokens: {found}")
        return factor
    more = "pixel_shuffle or bilinear" if fits else "bilinear"
    raise ModelError(
        f"distill.resize ({config.resize}): {found}; set distill.resize to {more}, distill.stage to a stage "
        "with these tokens, or another model.image_size or distill.teacher.image_size"
    )


def _text(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]}"
