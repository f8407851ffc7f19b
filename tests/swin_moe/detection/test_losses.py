"""The losses of the heads against plain loops and numbers worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from swin_moe.detection.boxes import BoxCoder
from swin_moe.detection.losses import class_loss, giou_box_loss, l1_box_loss, mask_loss
from tests.models import randn

IMAGES, PLACES, CLASSES = 2, 6, 3
CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
LABELS = torch.tensor([[2, 0, 3, 3, 3, 3], [1, 1, 1, 3, 3, 3]])  # 3 is the background
WEIGHT = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]).float()


def boxes(seed: int) -> Tensor:
    corner = 40 * randn(IMAGES, PLACES, 2, seed=seed).abs()
    return torch.cat([corner, corner + 8 + 30 * randn(IMAGES, PLACES, 2, seed=seed + 1).abs()], dim=-1)


ROIS, OBJECTS = boxes(1), boxes(5)
LOGITS = randn(IMAGES * PLACES, CLASSES + 1, seed=3)
DELTAS = 0.3 * randn(IMAGES * PLACES, CLASSES, 4, seed=4)


def rows() -> list[tuple[int, int, int]]:
    """Image, place and row of each region."""
    return [(b, r, b * PLACES + r) for b in range(IMAGES) for r in range(PLACES)]


def test_class_loss_is_a_plain_loop() -> None:
    slow = 0.0
    for image, place, row in rows():
        if WEIGHT[image, place]:
            exps = [math.exp(value) for value in LOGITS[row].tolist()]
            slow -= math.log(exps[LABELS[image, place]] / sum(exps))
    assert class_loss(LOGITS, LABELS, WEIGHT).item() == pytest.approx(slow / (IMAGES * PLACES), rel=1e-6)


def test_box_losses_are_plain_loops() -> None:
    distance = overlap = 0.0
    for image, place, row in rows():
        label = int(LABELS[image, place])
        if label == CLASSES:
            continue
        x1, y1, x2, y2 = ROIS[image, place].tolist()
        gx1, gy1, gx2, gy2 = OBJECTS[image, place].tolist()
        w, h, gw, gh = x2 - x1, y2 - y1, gx2 - gx1, gy2 - gy1
        wanted = (
            ((gx1 + gx2) / 2 - (x1 + x2) / 2) / w / 0.1,
            ((gy1 + gy2) / 2 - (y1 + y2) / 2) / h / 0.1,
            math.log(gw / w) / 0.2,
            math.log(gh / h) / 0.2,
        )
        deltas = DELTAS[row, label].tolist()
        distance += sum(abs(a - b) for a, b in zip(deltas, wanted, strict=True))
        cx, cy = (x1 + x2) / 2 + 0.1 * deltas[0] * w, (y1 + y2) / 2 + 0.1 * deltas[1] * h
        pw, ph = w * math.exp(0.2 * deltas[2]), h * math.exp(0.2 * deltas[3])
        px1, py1, px2, py2 = cx - pw / 2, cy - ph / 2, cx + pw / 2, cy + ph / 2
        inter = max(0.0, min(px2, gx2) - max(px1, gx1)) * max(0.0, min(py2, gy2) - max(py1, gy1))
        union = pw * ph + gw * gh - inter
        hull = (max(px2, gx2) - min(px1, gx1)) * (max(py2, gy2) - min(py1, gy1))
        overlap += 1 - (inter / union - (hull - union) / hull)
    places = IMAGES * PLACES
    l1, giou = (f(DELTAS, LABELS, ROIS, OBJECTS, CODER).item() for f in (l1_box_loss, giou_box_loss))
    assert l1 == pytest.approx(distance / places, rel=1e-5)
    assert giou == pytest.approx(10 * overlap / places, rel=1e-5)


def test_giou_by_hand() -> None:
    """A region beside its object by half of its width: IoU 1/3, no gap, and 10 * 2/3 over 2 places."""
    roi = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]]])
    target = torch.tensor([[[5.0, 0, 15, 10], [0, 0, 0, 0]]])
    loss = giou_box_loss(torch.zeros(2, 1, 4), torch.tensor([[0, 1]]), roi, target, CODER)
    assert loss.item() == pytest.approx(10 * (2 / 3) / 2)


def test_mask_loss_is_a_mean_over_the_masks_of_an_image() -> None:
    logits, targets = randn(4, CLASSES, 2, 2, seed=8), (randn(4, 2, 2, seed=9) > 0).float()
    labels, image = torch.tensor([2, 0, 1, CLASSES]), torch.tensor([0, 0, 1, -1])
    each = []
    for row in range(3):
        values = logits[row, labels[row]].flatten().tolist()
        pixels = zip(values, targets[row].flatten().tolist(), strict=True)
        each.append(sum(math.log1p(math.exp(x)) - x * t for x, t in pixels) / 4)
    slow = ((each[0] + each[1]) / 2 + each[2]) / 2
    assert mask_loss(logits, labels, targets, image, 2).item() == pytest.approx(slow, rel=1e-6)
    assert mask_loss(logits[3:], labels[3:], targets[3:], image[3:], 2).item() == 0.0


def test_losses_are_linear_in_the_images() -> None:
    def each(part: slice) -> Tensor:
        rows = slice(part.start * PLACES, part.stop * PLACES)
        arguments = DELTAS[rows], LABELS[part], ROIS[part], OBJECTS[part], CODER
        losses = [f(*arguments) for f in (l1_box_loss, giou_box_loss)]
        return torch.stack([class_loss(LOGITS[rows], LABELS[part], WEIGHT[part]), *losses])

    alone = torch.stack([each(slice(0, 1)), each(slice(1, 2))]).mean(0)
    torch.testing.assert_close(each(slice(0, 2)), alone)


@pytest.mark.parametrize("loss", [l1_box_loss, giou_box_loss])
def test_gradients_of_box_losses(loss) -> None:  # type: ignore[no-untyped-def]
    deltas = DELTAS.double().requires_grad_()
    rois, objects = ROIS.double(), OBJECTS.double()
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS, rois, objects, CODER), (deltas,))
    loss(deltas, LABELS, rois, objects, CODER).backward()
    assert deltas.grad is not None
    learned = deltas.grad.abs().sum(-1) > 0  # the columns of its own class, and of positives alone
    expected = torch.nn.functional.one_hot(LABELS.flatten(), CLASSES + 1)[:, :CLASSES].bool()
    assert torch.equal(learned, expected)
