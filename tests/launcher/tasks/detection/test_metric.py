"""COCO's figures: those of pycocotools on the files themselves, numbers worked by hand, any ranks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_shards.errors import DataError
from launcher.config.load import load_config
from launcher.tasks.detection import SPEC
from launcher.tasks.detection.coco_eval import FIGURES
from launcher.tasks.detection.detections import ImageDetections
from launcher.tasks.detection.metric import DetectionMetric
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG
from tests.launcher.tasks.detection.object_shards import options
from tests.launcher.tasks.detection.scenes import (
    CATEGORIES,
    Given,
    batch_of,
    coco_json,
    evaluated,
    noisy,
    scene,
    truth_as_found,
)

SCENES = [scene(number) for number in range(12)]
TYPES = {"box": "bbox", "mask": "segm"}
NONE = ImageDetections(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), (20, 20), []
)


def reference(results: Sequence[Mapping[str, Any]], iou_type: str, tmp_path: Path) -> list[float]:
    """The twelve figures that pycocotools prints of files."""
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(coco_json(SCENES)))
    kept = [{name: one[name] for name in one if iou_type == "bbox" or name != "bbox"} for one in results]
    found.write_text(json.dumps(kept))
    known = COCO(str(truth))
    run = COCOeval(known, known.loadRes(str(found)), iou_type)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [float(value) for value in run.stats]


def test_the_figures_are_those_of_pycocotools_on_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the results that the metric writes; and nothing is printed."""
    metric = DetectionMetric(len(CATEGORIES))
    for position, one in enumerate(SCENES):
        metric.update(Given([noisy(one, 0)]), batch_of([one], [position]))
    metric.reduce()
    values = metric.compute()
    assert capsys.readouterr().out == ""
    json.dumps(values, allow_nan=False)
    (path,) = metric.write(tmp_path, Mock(category_ids=CATEGORIES))
    results = json.loads(path.read_text())
    assert (path.name, len(results)) == ("detections.json", values["detections"])
    for name, iou_type in TYPES.items():
        wanted = [None if value == -1 else value for value in reference(results, iou_type, tmp_path)]
        assert [values[f"{name}_{figure}"] for figure in FIGURES] == pytest.approx(wanted, abs=1e-12)
        assert 0.1 < values[f"{name}_ap"] < 0.9


def test_the_truth_has_ap_1_and_shuffled_labels_next_to_none() -> None:
    right = [truth_as_found(one) for one in SCENES]
    values = evaluated(SCENES, right)
    for name in TYPES:
        shown = [values[f"{name}_{figure}"] for figure in FIGURES if figure != "ar1"]
        assert shown == pytest.approx([1.0] * 11, abs=1e-9)
        assert values[f"class_{name}_ap"] == [
            pytest.approx(1.0),
            pytest.approx(1.0),
            pytest.approx(1.0),
            None,
        ]
    things = [thing for one in SCENES for thing in one["objects"]]
    counts = [sum(not one["iscrowd"] and one["label"] == label for one in things) for label in range(4)]
    assert (values["class_objects"], values["classes"], values["images"]) == (counts, 3, 12)
    assert values["objects"] == values["detections"] == sum(counts) < len(things)
    wrong = [one._replace(labels=(one.labels + 1) % 3) for one in right]
    values = evaluated(SCENES, wrong)
    assert values["box_ap"] < 0.05
    assert values["mask_ap"] < 0.05


def thing(box: Sequence[float], label: int = 0, crowd: int = 0) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    known = {"label": label, "box": list(box), "area": (x2 - x1) * (y2 - y1), "iscrowd": crowd}
    return {**known, "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}


def image(image_id: int, *objects: Mapping[str, Any]) -> dict[str, Any]:
    numbered = [{"id": number, **one} for number, one in enumerate(objects)]
    return {"image_id": image_id, "height": 20, "width": 20, "objects": numbered}


def found(*detections: tuple[Sequence[float], float]) -> ImageDetections:
    boxes, scores = zip(*detections, strict=True)
    return ImageDetections(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        np.zeros(len(scores), np.int64),
        (20, 20),
    )


A, B, C = (0, 0, 10, 10), (10, 10, 20, 20), (0, 10, 10, 20)


def test_an_average_precision_by_hand() -> None:
    """Two objects; detections right, wrong, right. Precision is 1 up to recall 0.5, of which there are 51
    points (0, 0.01 ... 0.50), and 2/3 at the other 50."""
    scenes = [image(1, thing(A)), image(2, thing(B))]
    values = evaluated(scenes, [found((A, 0.9), (C, 0.8)), found((B, 0.7))], masks=False)
    assert values["box_ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert values["class_box_ap"] == [values["box_ap"], None, None, None]
    assert (values["box_ar1"], values["box_ap_small"], values["box_ap_large"]) == (
        1.0,
        values["box_ap"],
        None,
    )
    assert "mask_ap" not in values


def test_equal_scores_fall_by_order() -> None:
    """Inside of an image by the order of its detections, between images by their ids, not their positions."""
    scenes = [image(5, thing(A))]
    for order, wanted in (((A, C), 1.0), ((C, A), 0.5)):
        values = evaluated(scenes, [found(*((box, 0.5) for box in order))], masks=False)
        assert values["box_ap"] == pytest.approx(wanted)
    for ids, wanted in (((1, 2), 1.0), ((2, 1), 0.5)):
        scenes = [image(ids[0], thing(A)), image(ids[1])]
        values = evaluated(scenes, [found((A, 0.5)), found((C, 0.5))], masks=False)
        assert values["box_ap"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("other", "crowd", "wanted"),
    [
        # the first detection covers the crowd by 50 of its own 100 pixels: it is ignored at the threshold
        # 0.5, and wrong at the nine higher ones, where the object is found at precision 1/2
        ((0, 0, 5, 10), 1, [1.0, (1 + 9 * 1 / 2) / 10]),
        # an object of that box has an IoU of 50 / 100 too: both are found at 0.5, and above it one of two
        ((0, 0, 5, 10), 0, [1.0, (1 + 9 * 51 / 101 / 2) / 10]),
        # 25 of 100 pixels are too few of a crowd, and 25 / 175 of an object
        ((5, 5, 15, 15), 1, [1 / 2, 1 / 2]),
        ((5, 5, 15, 15), 0, [51 / 101 / 2, 51 / 101 / 2]),
    ],
)
def test_crowds(other: Sequence[float], crowd: int, wanted: Sequence[float]) -> None:
    scenes = [image(1, thing(other, crowd=crowd), thing((15, 15, 20, 20)))]
    values = evaluated(scenes, [found(((0, 0, 10, 10), 0.9), ((15, 15, 20, 20), 0.8))], masks=False)
    assert [values["box_ap50"], values["box_ap"]] == pytest.approx(wanted)


def test_a_crowd_takes_any_number_of_detections() -> None:
    scenes = [image(1, thing(A, crowd=1), thing(B))]
    small = [((x, 0, x + 2, 10), 0.9) for x in range(0, 10, 2)]
    assert evaluated(scenes, [found(*small, (B, 0.5))], masks=False)["box_ap"] == pytest.approx(1.0)


def test_nothing_found_and_nothing_there() -> None:
    values = evaluated([image(1, thing(A)), image(2)], [NONE, NONE])
    assert (values["box_ap"], values["mask_ap"], values["box_ar100"]) == (0.0, 0.0, 0.0)
    assert (values["class_box_ap"], values["detections"]) == ([0.0, None, None, None], 0)
    metric = DetectionMetric(4)
    assert metric.line(values) == (
        "box AP 0.00%, box AP50 0.00%, box AP75 0.00%, mask AP 0.00%, mask AP50 0.00%, mask AP75 0.00% over "
        "1 classes on 2 images"
    )
    values = evaluated([image(1)], [NONE])
    assert (values["box_ap"], values["class_objects"], values["images"]) == (None, [0] * 4, 1)
    assert metric.line(values).startswith("box AP none, box AP50 none")
    json.dumps(values, allow_nan=False)


def test_a_record_may_say_less() -> None:
    """An object is no crowd unless it says so; without masks, boxes alone are compared."""
    brief = {"label": 0, "box": list(A), "area": 100}
    assert evaluated([image(1, brief)], [found((A, 0.9))], masks=False)["box_ap"] == pytest.approx(1.0)
    with pytest.raises(DataError, match=r"image 1 has an object without a mask: set detection.head.masks=fa"):
        evaluated([image(1, brief)], [NONE])


def test_the_table_has_a_row_for_each_class() -> None:
    scenes = [image(1, thing(A), thing(B, label=1)), image(2, thing(A, label=1))]
    values = evaluated(scenes, [found((A, 0.9)), found((C, 0.8))], masks=False)
    metric = DetectionMetric(4, masks=False)
    (table,) = metric.tables(values, ["hat", "coat", "shoe", "bag"]).values()
    assert table.text().splitlines() == [
        "  class   box_ap  objects",
        "   coat    0.00%        2",
        "    hat  100.00%        1",
        "   shoe                 0",
        "    bag                 0",
    ]


def values_of_ranks(batch_size: int) -> dict[str, Any] | None:
    """The values of the scenes, dealt to the ranks in batches; the last ones are padded."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    metric = DetectionMetric(len(CATEGORIES))
    step, empty = batch_size * ranks, noisy(SCENES[4], 0)
    for start in range(0, len(SCENES), step):
        rows = range(start + rank * batch_size, start + (rank + 1) * batch_size)
        scenes = [SCENES[row] if row < len(SCENES) else None for row in rows]
        given = Given([empty if one is None else noisy(one, 0) for one in scenes])
        metric.update(given, batch_of(scenes, [row if row < len(SCENES) else -1 for row in rows]))
    metric.reduce()
    return metric.compute() if rank == 0 else None


def test_ranks_and_batches_change_nothing() -> None:
    """Bit for bit, and padding does not count."""
    wanted = values_of_ranks(1)
    assert wanted is not None
    assert wanted["images"] == len(SCENES)
    assert [values_of_ranks(batch_size) for batch_size in (5, 12)] == [wanted] * 2
    for ranks, batch_size in ((2, 5), (4, 2)):
        assert run_on_ranks(values_of_ranks, ranks, batch_size)[0] == wanted


def test_samples_of_weight_0_do_not_count() -> None:
    """Those of a shuffled evaluation are there a second time, with a position and without a weight."""
    wanted = evaluated(SCENES[:3], [noisy(one, 0) for one in SCENES[:3]])
    metric = DetectionMetric(len(CATEGORIES))
    batch = batch_of([*SCENES[:3], SCENES[0]], [0, 1, 2, 3])
    batch.weights[3] = 0
    metric.update(Given([noisy(one, 0) for one in SCENES[:3]] + [truth_as_found(SCENES[0])]), batch)
    metric.reduce()
    assert metric.compute() == wanted


def test_the_faster_evaluator_gives_the_same_figures() -> None:
    pytest.importorskip("faster_coco_eval", reason="pip install 'swin-moe[coco]'")
    given = [noisy(one, 1) for one in SCENES]
    wanted, values = evaluated(SCENES, given), evaluated(SCENES, given, evaluator="faster_coco_eval")
    assert values.keys() == wanted.keys()
    for name, value in wanted.items():
        assert values[name] == pytest.approx(value, abs=1e-9), name
    nothing = evaluated([image(1, thing(A))], [NONE], evaluator="faster_coco_eval")
    assert (nothing["box_ap"], nothing["class_box_ap"]) == (0.0, [0.0, None, None, None])


def test_an_evaluator_that_is_not_installed_is_refused_before_the_run() -> None:
    config = load_config(CONFIG, options(Path("shards"), "run", "detection.evaluator=faster_coco_eval"))
    with patch("launcher.tasks.detection.find_spec", return_value=None):
        (error,) = SPEC.check(config)
    assert error == (
        "detection.evaluator (faster_coco_eval): its package is not installed; pip install 'swin-moe[coco]'"
    )
