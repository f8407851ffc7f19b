"""The options of a detector: what is published by kind, and what is refused."""

import pytest

from swin_moe.config import ModelConfig
from swin_moe.detection.config import DetectorConfig, check_model
from swin_moe.errors import ModelError


def test_published_values_by_kind() -> None:
    mask, cascade = DetectorConfig(), DetectorConfig(kind="cascade_mask_rcnn")
    assert (mask.proposals_in_training, cascade.proposals_in_training) == (1000, 2000)
    assert (mask.anchor_border, cascade.anchor_border) == (-1, 0)
    assert (mask.rpn_beta, cascade.rpn_beta) == (0.0, 1 / 9)
    assert (mask.rpn_positives, mask.roi_positives) == (128, 128)
    assert DetectorConfig(kind="cascade_mask_rcnn", train_proposals=7).proposals_in_training == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": 0}, r"detection\.head\.channels \(0\) must be at least 1"),
        ({"roi_samples": 3}, r"detection\.head\.roi_samples \(3\) must be at least 4"),
        ({"train_proposals": 0}, r"detection\.head\.train_proposals \(0\) must lie in 1\.\."),
        ({"score_threshold": float("nan")}, r"detection\.head\.score_threshold \(nan\) must be at least 0"),
        ({"nms_threshold": 1.1}, r"detection\.head\.nms_threshold \(1\.1\) must be at most 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        DetectorConfig(**options)  # type: ignore[arg-type]


def test_a_model_of_one_stage_has_no_pyramid() -> None:
    check_model(ModelConfig())
    with pytest.raises(ModelError, match=r"at least two maps: model\.depths \(\[2\]\) has 1 stage"):
        check_model(ModelConfig(depths=(2,), num_heads=(2,), window_size=(7,)))
