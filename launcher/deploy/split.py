"""Images and labels of splits, for golden images, calibration and the comparison of accuracies.

Legend: N images of h x w pixels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_shards.augment.normalize import Normalize
from data_shards.image.geometry import EvalTransform
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, ReadOptions, StreamOptions
from data_shards.stream.transform import Images, LabelledImages
from launcher.console.progress import progress_line
from swin_moe.weights.input_spec import InputSpec


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shards that are read as an evaluation reads them."""

    place: str
    sides: tuple[int, int]  # h and w
    inputs: InputSpec
    classes: tuple[str, ...] | None = None  # to which labels are mapped by name
    limit: int | None = None  # the first images alone
    threads: int = 2
    retry_s: float = 300.0

    def draw(self, number: int, seed: int) -> Tensor:
        """Images drawn by a seed: (N, 3, h, w) uint8; N is at most `number`.

        Raises:
            DataError: the split cannot be read.
        """
        sampling = EvalSampling(batch_size=min(number, 32), shuffle_seed=seed, limit=number)
        with EvalStream(self.place, sampling, Images(self._crop), self._options) as stream:
            return torch.cat([batch["image"][batch.weights > 0] for batch in stream])

    def judge(self, name: str, classify: Callable[[Tensor], Tensor], batch_size: int) -> "Judged":
        """What a program says of all images, with a line of progress.

        Args:
            name: for the progress.
            classify: normalized images (B, 3, h, w) fp32 to logits (B, K) on the CPU.
            batch_size: of a call.

        Raises:
            DataError: the split cannot be read.
        """
        normalize = Normalize(self.inputs.mean, self.inputs.std, torch.device("cpu"))
        show, chosen, labels, done = progress_line(name, "images"), [], [], 0
        sampling = EvalSampling(batch_size=batch_size, limit=self.limit)
        transform = LabelledImages(self._crop)
        with EvalStream(self.place, sampling, transform, self._options, classes=self.classes) as stream:
            for batch in stream:
                counted = batch.weights > 0
                logits = classify(normalize(batch["image"][counted]))
                chosen.append(logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1))
                labels.append(batch["label"][counted].clone())
                done += len(chosen[-1])
                show(done, stream.num_samples)
        return Judged(torch.cat(chosen), torch.cat(labels))

    @property
    def _crop(self) -> EvalTransform:
        return EvalTransform(image_size=self.sides, crop_ratio=self.inputs.eval_crop)

    @property
    def _options(self) -> StreamOptions:
        return StreamOptions(threads=self.threads, read=ReadOptions(deadline_s=self.retry_s))


class Judged(NamedTuple):
    """What a program says of the images of a split."""

    chosen: Tensor  # (N,) int64 the class with the largest logit; -1 where a logit is no finite number
    labels: Tensor  # (N,) int64

    @property
    def top1(self) -> float:
        """The share of the images whose class was chosen."""
        return (self.chosen == self.labels).double().mean().item()


POINTS = {"float": 0.05, "int8": 0.5}  # of top-1, by which an artifact may differ from its model


def compare(found: Judged, wanted: Judged, points: float) -> str | None:
    """Why the top-1 of an artifact is not the model's: more points apart than these, and than one image."""
    images = len(wanted.labels)
    hits = [int((judged.chosen == judged.labels).sum()) for judged in (found, wanted)]
    if abs(hits[0] - hits[1]) <= max(1.0, points / 100 * images):
        return None
    return (
        f"its top-1 on {images} images is {found.top1:.2%}, the model's {wanted.top1:.2%}: more than "
        f"{points:g} points apart"
    )
