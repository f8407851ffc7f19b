"""A trained model and the images that it takes: what `launcher.load` gives.

    trained = launcher.load("runs/a")
    logits = trained.model(trained.transform("cat.jpg")[None]).logits
    best = trained.classes[logits.argmax()]
    print(trained.predict("cat.jpg")[0].name)                    # the same, without dropped tokens

Legend: B images of h x w pixels, K classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from data_shards.augment.normalize import Normalize
from data_shards.image.decode import decode_image, transform_frames
from data_shards.image.geometry import EvalTransform
from launcher.config.load import load_config
from launcher.config.schema import DataConfig, RunConfig
from launcher.evaluation.modes import standard_modes
from launcher.evaluation.recorded import recorded_task
from launcher.tasks.class_scores import ClassScore, best_classes
from swin_moe.backbone.model import SwinTransformer
from swin_moe.errors import ModelError
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.recipes import recipe_files
from swin_moe.registry import build_model
from swin_moe.weights import trained
from swin_moe.weights.errors import NoClassifierError, WeightsError
from swin_moe.weights.input_spec import InputSpec, input_spec_of

Image = str | Path | bytes | np.ndarray | PIL.Image.Image


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode, the images that it takes and the names of its classes."""

    model: SwinTransformer  # its options are model.config
    inputs: InputSpec

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the outputs; None where nobody recorded them."""
        return self.inputs.classes

    def transform(self, image: Image) -> Tensor:
        """What an evaluation makes of an image, to the last bit: (3, h, w) float32.

        Args:
            image: the path or the bytes of a file; or pixels, a PIL image or an array (H, W, 3) uint8. The
                pixels of a JPEG are those of this system's decoder if it gets the file.

        Raises:
            DataError: the image cannot be decoded.
            ModelError: a model of clips.
        """
        if frames := self.model.config.frames:
            raise ModelError(
                f"a model of clips (model.frames={frames}) takes no image: give `model` clips of (B, 3, "
                f"{frames}, h, w), normalized, or run `swin-moe predict`"
            )
        return model_image(image, self.model.config.image_sides, self.inputs)

    def predict(self, image: Image, top: int = 5) -> tuple[ClassScore, ...]:
        """The most likely classes of an image, best first, as `swin-moe predict` gives them.

        No expert drops a token.

        Args:
            image: see `transform`.
            top: at most so many classes.

        Raises:
            DataError: the image cannot be decoded.
            ModelError: `top` is below 1, a logit is no finite number, or a model of clips.
        """
        if top < 1:
            raise ModelError(f"top ({top}) must be at least 1")
        [logits] = exact_logits(self.model, self.transform(image)[None])
        if not bool(logits.isfinite().all()):
            raise ModelError("the model gives numbers that are not finite for this image")
        return best_classes(logits, top, self.classes)


@torch.no_grad()
def exact_logits(model: SwinTransformer, images: Tensor) -> Tensor:
    """What a model says of images (B, 3, h, w) without dropped tokens: (B, K) fp32 on the CPU.

    Routers that know no choice without a capacity have that of their evaluations.
    """
    moe, device = model.config.moe, next(model.parameters()).device
    call = standard_modes(moe)[0].call if moe else RoutingOverrides()
    keys = torch.zeros(len(images), dtype=torch.int64, device=device)
    logits: Tensor = model(images.to(device), keys, call).logits
    return logits.float().cpu()


def load(source: str | Path, config: str | Path | None = None, *, ema: bool = False) -> LoadedModel:
    """A model with everything that its use needs.

    Weights that do not say how their images were normalized take that from `config`, or else ImageNet's mean
    and deviation and the crop of 0.875.

    Args:
        source: a run directory, a checkpoint, weights in any format of `swin_moe.load_weights`; or a recipe
            (its name or a YAML file): initial weights.
        config: the recipe (its name or a YAML file) of weights that do not know their model.
        ema: take the moving average of the weights.

    Raises:
        WeightsError: there is no such file, it does not say which model it is of, or its weights do not fit.
        ConfigError: the recipe cannot be used.
    """
    if config is None and _is_recipe(source):
        run = load_config(source)
        return LoadedModel(model=build_model(run.model, seed=run.seed).eval(), inputs=inputs_of(run.data))
    wanted = load_config(config) if config is not None else None
    try:
        model = trained.load(source, wanted.model if wanted else None, ema=ema)
    except WeightsError as error:
        if (task := recorded_task(source)) != RunConfig.task:
            raise WeightsError(
                f"{error}; it was trained with task={task}, and only classifiers are loaded so: "
                "`swin-moe predict` runs the model of any task, and swin_moe.load_weights loads its backbone "
                "into a model of swin_moe.build_backbone"
            ) from error
        if not isinstance(error, NoClassifierError):
            raise
        raise NoClassifierError(
            f"{source}: the weights have no classifier. Fine-tune them with `swin-moe train RECIPE "
            f"--pretrained {source} train.pretrained_head=replace`, or load them with "
            "swin_moe.load_weights into a model of swin_moe.build_backbone"
        ) from error
    inputs = input_spec_of(source) or inputs_of(wanted.data if wanted else DataConfig)
    return LoadedModel(model=model, inputs=inputs)


def inputs_of(data: DataConfig | type[DataConfig]) -> InputSpec:
    """The images of a configuration, or of the defaults."""
    return InputSpec(mean=data.mean, std=data.std, eval_crop=data.eval_crop)


def model_image(image: Image, sides: tuple[int, int], inputs: InputSpec) -> Tensor:
    """What an evaluation makes of an image, to the last bit: (3, h, w) float32.

    Args:
        image: see `LoadedModel.transform`.
        sides: h and w.
        inputs: the crop and the normalization.

    Raises:
        DataError: the image cannot be decoded.
    """
    normalize = Normalize(inputs.mean, inputs.std, torch.device("cpu"))
    return normalize(model_pixels(image, sides, inputs)[None])[0]


def model_pixels(image: Image, sides: tuple[int, int], inputs: InputSpec) -> Tensor:
    """The pixels of an image that an evaluation normalizes: (3, h, w) uint8.

    Args:
        image: see `LoadedModel.transform`.
        sides: h and w.
        inputs: the crop.

    Raises:
        DataError: the image cannot be decoded.
    """
    crop = EvalTransform(image_size=sides, crop_ratio=inputs.eval_crop)
    return torch.from_numpy(_cut(image, crop).copy())


def _is_recipe(source: str | Path) -> bool:
    """Whether a source is a configuration, not weights."""
    path = Path(source)
    return path.suffix in (".yaml", ".yml") or (not path.exists() and str(source) in recipe_files())


def _cut(image: Image, crop: EvalTransform) -> np.ndarray:
    """The part of an image that an evaluation sees: (3, h, w) uint8."""
    if isinstance(image, str | Path):
        image = Path(image).read_bytes()
    if isinstance(image, bytes):
        return decode_image(image, crop)
    if isinstance(image, PIL.Image.Image):
        image = np.asarray(image.convert("RGB"))
    return transform_frames(image[None], crop.geometry(*image.shape[:2]))[0]
