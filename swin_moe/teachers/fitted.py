"""A teacher that takes the student's images: of its own size and normalised its own way.

Legend: B images of h x w pixels of the student, h' x w' of the teacher.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.teachers.source import TeacherSpec


class FittedTeacher(nn.Module):
    """Resize and normalise the student's images anew, and give them to a teacher.

    Nothing is changed where both have the same size and normalization.

    Args:
        model: the teacher.
        spec: its images.
        mean: of the student's images.
        std: of the student's images.
    """

    scale: Tensor  # (3, 1, 1)
    shift: Tensor  # (3, 1, 1)

    def __init__(
        self, model: nn.Module, spec: TeacherSpec, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.model, self.sides = model, spec.sides
        self.is_normalised = (tuple(mean), tuple(std)) == (spec.mean, spec.std)
        of_student, of_teacher = (
            torch.tensor(one, dtype=torch.float64) for one in ((mean, std), (spec.mean, spec.std))
        )
        scale = of_student[1] / of_teacher[1]
        shift = (of_student[0] - of_teacher[0]) / of_teacher[1]
        for name, values in (
            ("scale", scale),
            ("shift", shift),
        ):  # no part of the weights, nor of their digest
            self.register_buffer(name, values.float().view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """What the teacher says of the student's images (B, 3, h, w)."""
        output: Tensor = self.model(self.fit(images))
        return output

    def fit(self, images: Tensor) -> Tensor:
        """The teacher's images: (B, 3, h, w) -> (B, 3, h', w') fp32; bilinear, averaged where they shrink."""
        images = images.float()
        if images.shape[2:] != self.sides:
            images = F.interpolate(images, self.sides, mode="bilinear", antialias=True)
        return images if self.is_normalised else images * self.scale + self.shift
