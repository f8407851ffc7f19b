"""The program of a frozen model as `torch.export` gives it, for any batch of a range."""

import torch
from torch.export import Dim, ExportedProgram, export

from launcher.deploy.targets.base import Subject


def exported(subject: Subject) -> ExportedProgram:
    """The graph of a frozen model on images (B, channels, h, w) fp32, B of the range that was asked for."""
    fewest, most = subject.options.batch
    model = subject.loaded.model.config
    # torch specializes on 0 and 1: an example of one image would give a program of one image
    number = most if fewest == most else max(2, fewest)
    images = torch.zeros(number, model.in_chans, *model.image_sides, device=subject.device)
    shapes = None if fewest == most else ({0: Dim("batch", min=fewest, max=most)},)
    return export(subject.frozen, (images,), dynamic_shapes=shapes)
