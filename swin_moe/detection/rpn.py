"""The region proposal network: scores and moves anchors (Ren et al. 2015, arXiv:1506.01497, section 3.1).

Names of parameters are those of the published detectors: `rpn_conv`, `rpn_cls`, `rpn_reg`. Every image has
the same numbers of samples and proposals, some with weight 0 or not valid, and a loss is linear in the images
of the global batch. In both points the published code deviates: its divisor is the number of samples that a
rank found. The two agree wherever an image has as many anchors as samples are wanted.

Legend: B images, C channels, L levels of H x W tokens, r anchors of a token, n anchors of a level, A anchors
of an image, P places for proposals of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.detection.anchors import RATIOS, Sides, grid_anchors, valid_anchors
from swin_moe.detection.assign import assign
from swin_moe.detection.boxes import BoxCoder
from swin_moe.detection.nms import batched_nms, fill_up, top_scores
from swin_moe.detection.sample import Sample, sample
from swin_moe.detection.targets import Targets, take_objects
from swin_moe.heads.filled_layers import FilledConv2d, fill_normal
from swin_moe.moe.routers.base import to_fp32
from swin_moe.random.keyed import fold_in

RPN_SITE = -4  # of the draws of anchors; the sites of a backbone count from 0
POSITIVE, NEGATIVE = 0.7, 0.3  # IoU from which an anchor is positive, and below which it is negative
CODER = BoxCoder()
FILL = fill_normal(0.01)  # initial weights


class RPNOutput(NamedTuple):
    """What the network says of the anchors of each level."""

    logits: list[Tensor]  # L of (B, n): that there is an object
    deltas: list[Tensor]  # L of (B, n, 4)
    anchors: list[Tensor]  # L of (n, 4) fp32, in pixels of the canvas
    sides: list[Sides]  # H and W of each level
    strides: tuple[int, ...]  # of the levels, in pixels


class RPNLosses(NamedTuple):
    """The means over images; scalars, fp32."""

    objectness: Tensor
    box: Tensor


class Proposals(NamedTuple):
    """Boxes that may hold an object, by descending score: a fixed number of places for each image."""

    boxes: Tensor  # (B, P, 4) fp32 in pixels of the canvas, inside of the image; zeros if not valid
    scores: Tensor  # (B, P) fp32 logits; 0 if not valid
    valid: Tensor  # (B, P) bool


class RPNHead(nn.Module):
    """One convolution, and linear layers to a logit and four offsets of each anchor; the same on all levels.

    Args:
        channels: C.
        strides: of the levels, in pixels.
        scale: side of the square anchor, in strides.
    """

    def __init__(self, channels: int, strides: Sequence[int], scale: float) -> None:
        super().__init__()
        self.strides, self.scale = tuple(strides), scale
        self.rpn_conv = FilledConv2d(channels, channels, 3, FILL)
        self.rpn_cls = FilledConv2d(channels, len(RATIOS), 1, FILL)
        self.rpn_reg = FilledConv2d(channels, 4 * len(RATIOS), 1, FILL)

    def forward(self, maps: Sequence[Tensor]) -> RPNOutput:
        """Logits and offsets of all anchors of maps (B, C, H, W)."""
        logits, deltas = [], []
        for x in maps:
            y = F.relu(self.rpn_conv(x))
            logits.append(self.rpn_cls(y).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.rpn_reg(y).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        sides = [(x.shape[2], x.shape[3]) for x in maps]
        anchors = grid_anchors(sides, self.strides, self.scale, device=maps[0].device)
        return RPNOutput(logits, deltas, anchors, sides, self.strides)

    def extra_repr(self) -> str:
        """As torch's modules print their arguments."""
        return f"strides={self.strides}, scale={self.scale}"


def rpn_loss(
    output: RPNOutput,
    sizes: Tensor,
    targets: Targets,
    keys: Tensor,
    *,
    samples: int,
    max_positive: int,
    border: int = -1,
    beta: float = 0.0,
) -> RPNLosses:
    """The losses of some anchors of each image, divided by the number of samples that are wanted.

    Args:
        output: of `RPNHead`.
        sizes: (B, 2) height and width of the images without padding, in pixels.
        targets: the objects.
        keys: (B,) of the images.
        samples: anchors of an image that are drawn.
        max_positive: positives among them at most.
        border: by how many pixels an anchor may stick out of the image; negative: by any number.
        beta: up to which difference the box loss is quadratic; 0: it is the L1 loss.
    """
    assigned, drawn = draw_anchors(output, sizes, targets, keys, samples, max_positive, border)
    owner = assigned.gather(1, drawn.indices)  # (B, samples)
    logits = to_fp32(torch.cat(output.logits, dim=1).gather(1, drawn.indices))
    labels = (owner >= 0).to(logits)
    objectness = F.binary_cross_entropy_with_logits(logits, labels, drawn.weight, reduction="sum")
    front = slice(0, max_positive)  # where the positives are
    indices, owner = drawn.indices[:, front], owner[:, front]
    deltas = torch.cat(output.deltas, dim=1).gather(1, indices[..., None].expand(-1, -1, 4))
    wanted = CODER.encode(torch.cat(output.anchors)[indices], take_objects(targets.boxes, owner))
    each = F.smooth_l1_loss(to_fp32(deltas), wanted.to(logits), reduction="none", beta=beta).sum(-1)
    box = (each * (drawn.weight[:, front] * (owner >= 0))).sum()
    divisor = samples * len(sizes)
    return RPNLosses(objectness / divisor, box / divisor)


@torch.no_grad()
def draw_anchors(
    output: RPNOutput,
    sizes: Tensor,
    targets: Targets,
    keys: Tensor,
    samples: int,
    max_positive: int,
    border: int,
) -> tuple[Tensor, Sample]:
    """The objects of all anchors (B, A), see `assign`, and the anchors that are drawn."""
    valid = valid_anchors(output.anchors, output.sides, output.strides, sizes, border=border)
    anchors, images = torch.cat(output.anchors), zip(targets.boxes, targets.valid, valid, strict=True)
    assigned = torch.stack(
        [assign(anchors, gt, real, POSITIVE, NEGATIVE, NEGATIVE, True, inside) for gt, real, inside in images]
    )
    return assigned, sample(assigned, valid, fold_in(keys, RPN_SITE), samples, max_positive)


@torch.no_grad()
def propose(output: RPNOutput, sizes: Tensor, *, pre_nms: int, count: int, nms_threshold: float) -> Proposals:
    """The best boxes of each image after non-maximum suppression inside of each level.

    There is no least score and no least size. Scores are compared as logits, which order boxes like their
    probabilities and have fewer ties.

    Args:
        output: of `RPNHead`.
        sizes: (B, 2) height and width of the images without padding, in pixels; boxes are cut there.
        pre_nms: boxes of each level and image, the best, before the suppression.
        count: P.
        nms_threshold: IoU above which the lower of two of a level is removed.
    """
    boxes, scores, levels = [], [], []
    for level, (logits, deltas, anchors) in enumerate(
        zip(output.logits, output.deltas, output.anchors, strict=True)
    ):
        best = top_scores(logits, pre_nms)  # (B, k)
        moves = deltas.gather(1, best[..., None].expand(-1, -1, 4))
        boxes.append(CODER.decode(anchors[best], moves, sizes[:, None]))
        scores.append(logits.gather(1, best).float())
        levels.append(torch.full_like(best[0], level))
    level_of = torch.cat(levels)
    found = []
    for one, logits in zip(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), strict=True):
        kept = batched_nms(one, logits, level_of, nms_threshold, count)
        there = torch.ones_like(kept, dtype=torch.bool)
        found.append((fill_up(one[kept], count), fill_up(logits[kept], count), fill_up(there, count)))
    return Proposals(*(torch.stack(parts) for parts in zip(*found, strict=True)))
