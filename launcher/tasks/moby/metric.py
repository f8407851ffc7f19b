"""How well representations tell images apart: their neighbours, the agreement of two views, and their spread.

Legend: B images of a batch, C channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.metric import SumMetric
from parallel.ranks.host import send
from swin_moe.moe.layer import MoEStats


class MoBYPrediction(NamedTuple):
    """The encoder's pooled features of the centre of each image, and of a further view."""

    features: Tensor  # (B, C)
    other: Tensor | None  # (B, C); None for images in files, which have one view
    moe: dict[str, MoEStats]


class ViewAgreement(SumMetric):
    """alignment and spread of unit features.

    alignment: the mean squared distance of the features of two views of an image, 0 to 4 (Wang and Isola
    2020, equation 1). spread: the standard deviation of a channel over the images, the mean over the
    channels: at most 1 / sqrt(C), and 0 where all images have one feature. A collapsed encoder has a perfect
    alignment, so that the two belong together.
    """

    primary, higher_is_better = "alignment", False

    def sums(self, prediction: MoBYPrediction, batch: Batch) -> Tensor:
        """(2 + 2 C,): images, squared distances; of each channel the sum of values and of squares."""
        assert prediction.other is not None
        weights = send(batch.weights, self.device).double()
        one, other = (F.normalize(x.double(), dim=1) for x in (prediction.features, prediction.other))
        distances = (one - other).square().sum(1)
        scalars = torch.stack([weights.sum(), weights @ distances])
        return torch.cat([scalars, weights @ one, weights @ one.square()])

    def values(self, sums: Tensor) -> dict[str, Any]:
        """alignment, spread, images."""
        count, distances = sums[:2].tolist()
        mean, square = (sums[2:] / count).chunk(2)
        spread = (square - mean.square()).clamp_min(0).sqrt().mean().item()
        return {"alignment": distances / count, "spread": spread, "images": int(count)}

    def line(self, values: Mapping[str, Any]) -> str:
        """Both as text."""
        return f"alignment {values['alignment']:.4f}, spread {values['spread']:.4f}"
