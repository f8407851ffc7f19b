"""mIoU, mAcc and aAcc: numbers worked by hand, and counts beyond float32."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.metrics.metric import MetricTable
from launcher.tasks.segmentation.metric import SegmentationMetric, confusion
from launcher.tasks.segmentation.prediction import SegmentationPrediction

CPU = torch.device("cpu")


def update(metric: SegmentationMetric, labels: Tensor, found: Tensor, weights: list[float]) -> None:
    """One batch of label images and predictions, (B, H, W) each."""
    batch = Batch(
        tensors={"mask": labels.to(torch.uint8)},
        positions=torch.arange(len(labels)),
        weights=torch.tensor(weights),
    )
    finite = torch.ones(len(found), dtype=torch.bool)
    metric.update(SegmentationPrediction(found.to(torch.uint8), finite, {}), batch)


def test_iou_is_of_the_whole_set() -> None:
    """Image 1 has 4 pixels of class 0, all right; image 2 one of class 0 and 3 of class 1, all taken for 1.

    IoU of class 0 is 4 / (5 + 4 - 4) = 0.8, of class 1 it is 3 / (3 + 4 - 3) = 0.75, and the mean 0.775. The
    mean over images of the images' means would be (1 + (0 + 0.75) / 2) / 2 = 0.6875.
    """
    metric = SegmentationMetric(CPU, 2)
    update(metric, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), [1.0])
    update(metric, torch.tensor([[[0, 1], [1, 1]]]), torch.ones(1, 2, 2), [1.0])
    values = metric.compute()
    assert values["miou"] == pytest.approx(0.775)
    assert values["class_iou"] == pytest.approx([0.8, 0.75])
    assert values["macc"] == pytest.approx((4 / 5 + 1) / 2)
    assert values["aacc"] == pytest.approx(7 / 8)
    assert (values["pixels"], values["images"], values["class_pixels"]) == (8, 2, [5, 3])
    assert metric.line(values) == "mIoU 77.50%, mAcc 90.00%, aAcc 87.50% over 2 classes on 2 images"


def test_what_does_not_count() -> None:
    """Pixels without a label, whatever is predicted there; padding; classes that never occur."""
    metric = SegmentationMetric(CPU, 4)
    labels = torch.tensor([[[0, 255, 1]], [[2, 2, 2]]])
    found = torch.tensor([[[0, 3, 3]], [[0, 0, 0]]])
    update(metric, labels, found, [1.0, 0.0])
    values = metric.compute()
    # class 0: 1 / 1; 1: 0 / 1; 2 neither occurs nor is predicted; 3 is predicted once: 0 / 1
    assert values["class_iou"] == [1.0, 0.0, None, 0.0]
    assert values["class_accuracy"] == [1.0, 0.0, None, None]
    assert (values["miou"], values["macc"], values["aacc"]) == pytest.approx((1 / 3, 1 / 2, 1 / 2))
    assert (values["classes"], values["pixels"], values["images"]) == (3, 2, 1)
    json.dumps(values, allow_nan=False)


def test_the_table_has_a_row_for_each_class() -> None:
    metric = SegmentationMetric(CPU, 3)
    update(metric, torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 0, 0]]]), [1.0])
    (table,) = metric.tables(metric.compute(), ["sky", "sea", "land"]).values()
    assert [row[0] for row in table.rows] == ["sea", "sky", "land"]
    assert table.text().splitlines() == [
        "  class     iou  accuracy  pixels",
        "    sea   0.00%     0.00%       1",
        "    sky  66.67%   100.00%       2",
        "   land                         0",
    ]
    short = MetricTable(("a",), [(i,) for i in range(5)], shown=2)
    assert short.text().splitlines()[-1] == "  and 3 more in the file"


def test_against_a_loop_over_pixels() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 6, (2, 9, 7)).astype(np.uint8)
    labels[draw.random(labels.shape) < 0.2] = 255
    found = draw.integers(0, 6, labels.shape).astype(np.uint8)
    wanted = np.zeros((6, 6), int)
    for label, one in zip(labels.flat, found.flat, strict=True):
        if label != 255:
            wanted[label, one] += 1
    assert confusion(torch.from_numpy(labels), torch.from_numpy(found), 6).tolist() == wanted.tolist()


def test_counts_beyond_what_float32_holds() -> None:
    """2^24 + 1 pixels of a class, and one more: float32 would lose it."""
    metric = SegmentationMetric(CPU, 2)
    many = torch.zeros(1, 4096, 4096, dtype=torch.uint8)
    one = torch.zeros(1, 1, 1, dtype=torch.uint8)
    update(metric, many, many, [1.0])
    update(metric, one, one, [1.0])
    assert metric.compute()["pixels"] == 2**24 + 1
