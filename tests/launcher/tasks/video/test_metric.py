"""The views of a video make one prediction, and accuracies of videos and of views are told apart."""

import math

import pytest
import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.tasks.video.metric import VideoMetric
from launcher.tasks.video.prediction import VideoPrediction, mean_of_views, predict_views
from swin_moe.backbone.model import ModelOutput
from swin_moe.moe.layer import MoEStats

LOG = math.log


def test_probabilities_are_averaged() -> None:
    """(0.9, 0.1) and (0.02, 0.98) have the mean (0.46, 0.54); what logits have in common changes nothing."""
    first, second = torch.tensor([LOG(0.9), LOG(0.1)]) + 5, torch.tensor([LOG(0.02), LOG(0.98)]) - 7
    found = mean_of_views(torch.stack([first, second])[None])
    torch.testing.assert_close(found.exp(), torch.tensor([[0.46, 0.54]]))
    torch.testing.assert_close(found.softmax(1), found.exp())
    lone = mean_of_views(first[None, None])
    torch.testing.assert_close(lone.exp(), torch.tensor([[0.9, 0.1]]))


def test_one_confident_view_does_not_decide_alone() -> None:
    """With (1 - 1e-9, 1e-9) and three times (0.3, 0.7) the mean is 0.475 for class 0, so class 1.

    The mean of logits, (20.7 - 3 x 0.85) / 4 for class 0 over class 1, says class 0.
    """
    sure, others = torch.tensor([LOG(1 - 1e-9), LOG(1e-9)]), torch.tensor([LOG(0.3), LOG(0.7)])
    views = torch.stack([sure, others, others, others])[None]
    assert views.mean(1).argmax(1).tolist() == [0]
    assert mean_of_views(views).argmax(1).tolist() == [1]
    assert mean_of_views(views).exp()[0, 0].item() == pytest.approx((1 + 3 * 0.3) / 4, abs=1e-6)


def stand_in(clips: Tensor, keys: Tensor) -> ModelOutput:
    """Logits from the first pixels and the key, and statistics by clip: the count of its first pixel."""
    first = clips.flatten(1)[:, :3].float()
    logits = torch.cat([first, keys[:, None].float()], 1) / 50
    counts = clips.flatten(1)[:, :2].long()
    zero = torch.zeros((), dtype=torch.int64)
    stats = MoEStats(
        loss=torch.ones(()),
        load=counts.sum(0),
        dropped=zero,
        entropy=torch.zeros(()),
        received=zero,
        choices=counts,
        lost=counts[:, 0],
    )
    return ModelOutput(logits, {"layer": stats})


@pytest.mark.parametrize("at_once", [1, 2, 4, 5, 6])
def test_views_at_once_change_nothing(at_once: int) -> None:
    clips = torch.randint(0, 255, (3, 6, 2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    keys = torch.tensor([7, 8, 9])
    wanted, found = (predict_views(stand_in, clips, keys, n) for n in (0, at_once))
    assert torch.equal(found.views, wanted.views)
    assert torch.equal(found.logits, wanted.logits)
    for video in range(3):
        for view in range(6):
            alone = stand_in(clips[video, view][None], keys[video : video + 1]).logits[0]
            assert torch.equal(wanted.views[video, view], alone)
    counts = clips.flatten(3)[:, :, 0, :2].sum(1)
    for stats in (wanted.moe["layer"], found.moe["layer"]):
        assert stats.choices is not None
        assert torch.equal(stats.choices, counts)
        assert torch.equal(stats.of_images(torch.tensor([1, 0, 1])).load, counts[0] + counts[2])


def test_accuracies_by_hand() -> None:
    """Three videos of two views and three classes, and one of padding.

    Video 0 (class 0): views say 0 and 1; the mean of (0.8, 0.1, 0.1) and (0.3, 0.6, 0.1) is 0.55: right.
    Video 1 (class 1): both views say 2: (0.1, 0.3, 0.6) twice: wrong.
    Video 2 (class 1): (0.2, 0.7, 0.1) twice: right.
    Videos: 2 of 3; views: 1 + 0 + 2 of 6; classes: 0 has 1 of 1, 1 has 1 of 2, 2 has none: (1 + 0.5) / 2.
    Loss: -(log 0.55 + log 0.3 + log 0.7) / 3.
    """
    rows = [
        [(0.8, 0.1, 0.1), (0.3, 0.6, 0.1)],
        [(0.1, 0.3, 0.6)] * 2,
        [(0.2, 0.7, 0.1)] * 2,
        [(0.9, 0.05, 0.05)] * 2,
    ]
    views = torch.tensor(rows).log()
    batch = Batch(
        tensors={"label": torch.tensor([0, 1, 1, 0])},
        positions=torch.tensor([0, 1, 2, -1]),
        weights=torch.tensor([1.0, 1.0, 1.0, 0.0]),
    )
    metric = VideoMetric(torch.device("cpu"), 3, clips=2, crops=1)
    metric.update(VideoPrediction(mean_of_views(views), views, {}), batch)
    metric.reduce()
    values = metric.compute()
    assert values == pytest.approx(
        {
            "top1": 2 / 3,
            "top5": 1.0,
            "loss": -(LOG(0.55) + LOG(0.3) + LOG(0.7)) / 3,
            "images": 3,
            "view_top1": 0.5,
            "views": 2,
            "mean_class_top1": 0.75,
        }
    )
    assert metric.line(values) == (
        "top-1 66.67%, top-5 100.00%, mean of classes 75.00%, loss 0.7195 on 3 videos "
        "(2x1 views; single views: top-1 50.00%)"
    )
    one = VideoMetric(torch.device("cpu"), 3, clips=1, crops=1)
    assert one.line({**values, "views": 1}).endswith("on 3 videos (1x1 views)")
