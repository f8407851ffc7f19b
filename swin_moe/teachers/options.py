"""Which model is a frozen teacher, and the images that it takes. No torch."""

from dataclasses import dataclass

from parallel.ranges import check_ranges
from swin_moe.errors import ModelError, require
from swin_moe.sizes import MOST_SIDE, Size, check_size


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A model of ours by its weights, or a folder of transformers on this disk."""

    # a run, a checkpoint, weights in any format that `swin-moe convert` reads, or a folder of transformers
    # with safetensors (ViT, DINO, DeiT, DINOv2, CLIP, Swin, SwinV2); nothing is downloaded
    weights: str | None = None
    # the recipe (its name or a YAML file) of weights that do not say which Swin they are of
    model: str | None = None
    ema: bool = False  # the moving average of weights of ours
    image_size: Size | None = None  # its images in pixels, a side or [height, width]; null: its own
    mean: tuple[float, float, float] | None = None  # of its images, whose values are 0 to 1; null: its own
    std: tuple[float, float, float] | None = None  # likewise; null: its own

    def __post_init__(self) -> None:
        for name in ("weights", "model"):
            require(
                getattr(self, name) != "", f"teacher.{name} ('') must name a file or a folder, or be null"
            )
        if self.image_size is not None:
            check_size("teacher.image_size", self.image_size, least=1, most=MOST_SIDE, error=ModelError)
        require(
            (self.mean is None) == (self.std is None),
            f"teacher.mean ({_shown(self.mean)}) and teacher.std ({_shown(self.std)}) go together: set both, "
            "or neither",
        )
        if self.mean is not None:
            check_ranges("teacher.", self, error=ModelError, mean=(-1e3, 1e3), std=(1e-6, 1e3))


def _shown(colours: tuple[float, float, float] | None) -> str:
    """As it is written in YAML."""
    return "null" if colours is None else str(list(colours))
