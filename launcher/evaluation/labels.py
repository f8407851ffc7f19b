"""Evaluation in another label space than the model's: a mapping file (`--labels FILE`).

    {"format": "swin-moe labels 1",
     "model_classes": [3, null, 0, ...],
     "images": [[65], [795, 970], [], ...]}

model_classes has one entry a class of the model: the class of the data set that it is, or null (22K -> 1K,
ImageNet-V2 and the like). Several may be one; none of the data set's may be without.
images has one entry an image of data.val in index order: all of its right classes, in the data set's numbers
(ReaL, Beyer et al. 2020). An image without any does not count. Either may be missing, not both.

Legend: B images, M classes of the model, K classes of the data set, N images of the split.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards.format.index import Manifest
from data_shards.stream.batch import Batch
from launcher.config.load import ConfigError
from launcher.metrics.accuracy import ClassificationMetric
from swin_moe.backbone.model import ModelOutput
from swin_moe.heads.classification import evaluation_sums
from swin_moe.text_files import read_text

FORMAT = "swin-moe labels 1"


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """What a mapping file says, see the module."""

    path: Path
    num_classes: int  # K
    model_classes: list[int | None] | None  # M
    images: list[list[int]] | None  # N

    def mapped(self, labels: Sequence[int], num_classes: int) -> "LabelSpace":
        """The same images in another label space.

        Args:
            labels: (K,) the other space's label of each class here.
            num_classes: of the other space.
        """
        assert self.images is not None
        images = [[labels[label] for label in right] for right in self.images]
        return replace(self, num_classes=num_classes, images=images)

    def check(self, manifest: Manifest) -> None:
        """That it is for this split.

        Raises:
            ConfigError: it is not.
        """
        if self.images is not None and len(self.images) != manifest.samples:
            raise ConfigError(
                f"{self.path}: images has {len(self.images)} entries, data.val {manifest.samples} images: "
                "one each"
            )
        if self.images is None and len(manifest.classes) > self.num_classes:
            raise ConfigError(
                f"{self.path}: the classes are 0 ... {self.num_classes - 1}, but data.val has "
                f"{len(manifest.classes)}"
            )


def read_labels(path: Path, num_classes: int, data_classes: int | None = None) -> LabelSpace:
    """Read and check a mapping file.

    Args:
        path: of the file.
        num_classes: of the model, M.
        data_classes: of the data set, K, where the file has no model_classes; None is M.

    Raises:
        ConfigError: with what is wrong, and the place.
    """
    try:
        record = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--labels {path}: cannot read it ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ConfigError(f'--labels {path}: must be a JSON object with "format": "{FORMAT}"')
    if unknown := set(record) - {"format", "model_classes", "images"}:
        raise ConfigError(f"--labels {path}: no such entry: {', '.join(sorted(unknown))}")
    classes, images = record.get("model_classes"), record.get("images")
    if classes is None and images is None:
        raise ConfigError(f"--labels {path}: needs model_classes, images or both")
    unmapped = num_classes if data_classes is None else data_classes
    count = unmapped if classes is None else _check_classes(path, classes, num_classes)
    if images is not None:
        _check_images(path, images, count)
    return LabelSpace(path=path, num_classes=count, model_classes=classes, images=images)


def _check_classes(path: Path, classes: Any, num_classes: int) -> int:
    """The number of the data set's classes, K."""
    if not isinstance(classes, list) or len(classes) != num_classes:
        found = len(classes) if isinstance(classes, list) else "no list of"
        raise ConfigError(
            f"--labels {path}: model_classes has {found} entries, the model {num_classes} classes: one each"
        )
    for place, value in enumerate(classes):
        if value is not None and not _is_class(value, None):
            raise ConfigError(
                f"--labels {path}: model_classes[{place}] ({value!r}) must be a class, 0 or more, or null"
            )
    used = {value for value in classes if value is not None}
    count = max(used, default=-1) + 1
    if not 0 < count <= num_classes:
        raise ConfigError(
            f"--labels {path}: model_classes speaks of {count} classes of the data set; a model of "
            f"{num_classes} can tell 1 to {num_classes}"
        )
    if missing := sorted(set(range(count)) - used)[:5]:
        raise ConfigError(
            f"--labels {path}: model_classes gives no class of the model to {', '.join(map(str, missing))}"
        )
    return count


def _check_images(path: Path, images: Any, num_classes: int) -> None:
    if not isinstance(images, list):
        raise ConfigError(f"--labels {path}: images must be a list of lists of classes")
    for place, right in enumerate(images):
        if not isinstance(right, list) or not all(_is_class(value, num_classes) for value in right):
            raise ConfigError(
                f"--labels {path}: images[{place}] ({right!r}) must be a list of classes in 0 ... "
                f"{num_classes - 1}"
            )
    if not any(images):
        raise ConfigError(f"--labels {path}: images are all without a right class: nothing would count")


def _is_class(value: Any, num_classes: int | None) -> bool:
    return type(value) is int and value >= 0 and (num_classes is None or value < num_classes)


class RelabelledMetric(ClassificationMetric):
    """Accuracy and cross-entropy in another label space.

    A class of the data set has the summed probability of its model classes, of those that have one: their
    logits' logsumexp. Where several classes are right, any of them is a hit, and the loss is that of their
    summed probability.

    Args:
        device: of the model's output.
        space: the other label space.
    """

    def __init__(self, device: torch.device, space: LabelSpace) -> None:
        super().__init__(device)
        self.num_classes = space.num_classes
        self._map: tuple[Tensor, Tensor] | None = None
        self._right: Tensor | None = None
        if space.model_classes is not None:
            pairs = [(i, to) for i, to in enumerate(space.model_classes) if to is not None]
            ours, theirs = torch.tensor(pairs, device=device).unbind(1)
            self._map = ours, theirs
        if space.images is not None:
            most = max(map(len, space.images))
            padded = [right + [space.num_classes] * (most - len(right)) for right in space.images]
            self._right = torch.tensor(padded, device=device)  # (N, most), K where there is none

    def scores(self, output: ModelOutput) -> Tensor:
        """(B, K) logits of the data set's classes, fp32."""
        logits = output.logits.float()
        if self._map is None:
            return logits
        used, to = logits[:, self._map[0]], self._map[1].expand(len(logits), -1)
        peak = used.new_full((len(used), self.num_classes), -torch.inf).scatter_reduce_(1, to, used, "amax")
        summed = torch.zeros_like(peak).scatter_add_(1, to, (used - peak.gather(1, to)).exp())
        return summed.log() + peak

    def sums(self, prediction: ModelOutput, batch: Batch) -> Tensor:
        """(4,): as ClassificationMetric's, over the images that have a right class."""
        scores, weights = self.scores(prediction), batch.weights.to(self.device)
        if self._right is None:
            return evaluation_sums(scores, batch["label"].to(self.device), weights)
        positions = batch.positions.to(self.device).clamp_min(0)
        right = torch.zeros(len(scores), self.num_classes + 1, dtype=torch.bool, device=self.device)
        right = right.scatter_(1, self._right[positions], True)[:, :-1]  # (B, K)
        return right_sums(scores, right, weights)


def right_sums(scores: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """As `evaluation_sums`, where several classes are right.

    Args:
        scores: (B, K) logits.
        right: (B, K) bool; an image without any does not count.
        weights: (B,).
    """
    some = right.any(1)
    inside = scores.masked_fill(~right, -torch.inf).logsumexp(1)
    losses = (scores.logsumexp(1) - inside).where(some, 0.0)
    best = right.gather(1, scores.topk(min(5, scores.shape[1]), dim=1).indices).float()  # best first
    rows = [losses, best[:, 0], best.amax(1), torch.ones_like(losses)]
    return (torch.stack(rows) * weights * some).double().sum(1)
