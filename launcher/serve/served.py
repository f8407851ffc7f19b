"""Models as the server needs them: classifiers, and models with a class for each pixel.

Legend: B images of h x w pixels.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_shards.augment.normalize import Normalize
from data_shards.errors import DataError
from data_shards.format.index import MANIFEST_NAME
from data_shards.image.decode import decode_image
from launcher.config.errors import ConfigError
from launcher.config.schema import DataConfig
from launcher.deploy.artifact import Artifact, is_artifact
from launcher.deploy.golden import read_golden
from launcher.deploy.predictor import Predictor
from launcher.evaluation.loaded import model_pixels
from launcher.evaluation.recorded import recorded_task
from launcher.predict.inputs import image_inputs
from launcher.serve.images import AtMost
from launcher.serve.protocol import ExpertMap
from launcher.serve.segment import LONGEST
from launcher.tasks.registry import task_spec
from swin_moe.config import ModelConfig
from swin_moe.frozen.model import FrozenOutput

if TYPE_CHECKING:  # it imports DeepSpeed
    from launcher.predict.task_answerer import TaskAnswerer

EXAMPLES = 12  # of the page


class ServedClassifier:
    """See `ClassifierModel` in protocol.py.

    Args:
        predictor: an artifact, or a model that was loaded.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.name = predictor, predictor.source
        self.classes, self.num_classes = predictor.classes, predictor.model.num_classes
        self.expert_maps = expert_maps(predictor.model)
        self._normalize = Normalize(predictor.inputs.mean, predictor.inputs.std, torch.device("cpu"))

    @property
    def examples(self) -> Sequence[np.ndarray]:
        """The golden images of an artifact: (3, h, w) uint8 each."""
        if not isinstance(self.predictor, Artifact):
            return ()
        return [image.numpy() for image in read_golden(Path(self.predictor.folder)).images[:EXAMPLES]]

    def pixels(self, image: bytes) -> np.ndarray:
        """What it sees of the file of an image: (3, h, w) uint8."""
        return model_pixels(image, self.predictor.image_shape[1:], self.predictor.inputs).numpy()

    def run(self, pixels: np.ndarray) -> FrozenOutput:
        """Its answer to images (B, 3, h, w) uint8."""
        return self.predictor.run(self._normalize(torch.from_numpy(pixels)))

    def describe(self) -> dict[str, Any]:
        """What is known of it."""
        channels, height, width = self.predictor.image_shape
        card = asdict(self.predictor.card) if isinstance(self.predictor, Artifact) else None
        experts = f", {len(self.expert_maps)} layers with experts" if self.expert_maps else ""
        return {
            "text": f"{self.name}: {self.num_classes} classes, images of {width} x {height} pixels{experts}",
            "source": self.name,
            "classes": list(self.classes) if self.classes else None,
            "image": {"channels": channels, "height": height, "width": width},
            "card": card,
        }


class ServedSegmenter:
    """See `SegmentationModel` in protocol.py.

    Args:
        name: the run or the checkpoint.
        answerer: its model, asked for a class map.
    """

    def __init__(self, name: str, answerer: "TaskAnswerer") -> None:
        self.name, self.answerer = name, answerer
        self.classes, self.num_classes = answerer.options.classes, answerer.config.model.num_classes

    @property
    def examples(self) -> Sequence[np.ndarray]:
        """The first images of data.val, where it is on this machine: (3, h, w) uint8 each."""
        return first_images(self.answerer.config.data)

    def example(self, image: bytes) -> Any:
        """What it takes of the file of an image."""
        return self.answerer.example(image, 0)

    def class_map(self, example: Any) -> np.ndarray:
        """The index of the class of each pixel: (h, w) uint8; DataError where it has no answer."""
        [answered] = self.answerer.answer([example], [0])
        if isinstance(answered.said, str):
            raise DataError(answered.said)
        assert answered.class_map is not None
        return answered.class_map.numpy()

    def describe(self) -> dict[str, Any]:
        """What is known of it."""
        return {
            "text": f"{self.name}: {self.num_classes} classes, one for each pixel of an image",
            "source": self.name,
            "classes": list(self.classes) if self.classes else None,
        }


def has_class_map(source: str | Path) -> bool:
    """Whether a model is a `SegmentationModel`; otherwise it is a classifier.

    Raises:
        ConfigError: the model is of a task that cannot be served.
        TaskError: the task is not here.
    """
    task = recorded_task(source)
    spec = task_spec(task)
    if spec.is_classifier or is_artifact(source):
        return False
    if spec.predicting is not None and spec.predicting.class_maps is not None:
        return True
    if spec.sees == "clips":
        raise ConfigError(
            f"{source} was trained with task={task}: `serve` answers to images, and its model takes clips; "
            "`swin-moe predict` answers to videos"
        )
    raise ConfigError(
        f"{source} was trained with task={task}: `serve` is for classifiers and for tasks whose answer is a "
        "class for each pixel (`class_maps` in `predicting` of their spec, docs/extending.md)"
    )


def expert_maps(model: ModelConfig) -> tuple[ExpertMap, ...]:
    """The MoE layers of a model in order."""
    if model.moe is None:
        return ()
    return tuple(
        ExpertMap(f"layers.{stage}.blocks.{block}", height, width, model.moe.num_experts)
        for stage, blocks in enumerate(model.moe.blocks)
        for height, width in [model.stage_resolution(stage)]
        for block in sorted(blocks)
    )


def first_images(data: DataConfig) -> list[np.ndarray]:
    """A few images of the first set of data.val, made smaller where they are large: (3, h, w) uint8 each.

    None where the shards are elsewhere, or damaged.
    """
    place = next(iter(data.val_places.values()), None)
    if place is None or not (Path(place) / MANIFEST_NAME).is_file():
        return []
    try:
        with closing(image_inputs([place])) as images:
            return [decode_image(one.read(), AtMost(LONGEST)) for one in islice(images, EXAMPLES)]
    except (DataError, OSError):
        return []
