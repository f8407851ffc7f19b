"""From packed scenes through the loop of an evaluation to the files that it leaves."""

import json
from contextlib import redirect_stdout
from io import StringIO
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_shards.format.fields import IMAGE_AND_OBJECTS
from data_shards.format.samples import Source
from data_shards.pack.coco_json import write_coco_json
from data_shards.pack.write import pack
from data_shards.stream.batch import Batch
from data_shards.stream.detection import ObjectImages
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, StreamOptions
from launcher.evaluation.loop import Evaluated, evaluate
from launcher.tasks.detection.coco_eval import FIGURES
from launcher.tasks.detection.metric import DetectionMetric
from tests.data_shards.made_samples import MadeSamples
from tests.distributed import run_on_ranks
from tests.launcher.tasks.detection.scenes import CATEGORIES, Given, noisy, scene

COUNT = 11
SCENES = [scene(number) for number in range(COUNT)]
CLASSES = ("hat", "coat", "shoe", "bag")


def on_grey(number: int) -> dict[str, Any]:
    """A scene, and an image of its size."""
    record = SCENES[number]
    image = np.full((record["height"], record["width"], 3), 128, np.uint8)
    return {"image": image, "annotations": record}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "val"
    samples = {"val": MadeSamples(on_grey, np.arange(COUNT))}
    source = Source("scenes", "", CLASSES, samples, fields=IMAGE_AND_OBJECTS, category_ids=CATEGORIES)
    pack(source, "val", out, samples_per_shard=4)
    return out


class NoisyTask:
    """Finds what `noisy` says, which follows from the image alone."""

    pictured_batches = 0

    def eval_inputs(self, batch: Batch) -> Batch:
        return batch

    def predict(self, model: Any, inputs: Batch, keys: Any, call: Any) -> Given:
        found = {one["image_id"]: one for one in SCENES}
        rows = [found.get(image_id, SCENES[0]) for image_id in inputs["image_id"].tolist()]
        return Given([noisy(one, 0) for one in rows])

    def metric(self) -> DetectionMetric:
        return DetectionMetric(len(CLASSES))


def evaluated(split: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """The values, and the names of the files of this rank."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model, place = torch.nn.Identity(), torch.device("cpu")
    images = ObjectImages(num_classes=len(CLASSES), short_side=64, long_side=96)
    with EvalStream(
        split, EvalSampling(batch_size=1), images, StreamOptions(dp_rank=rank, dp_size=ranks)
    ) as stream:
        given = Evaluated(
            model=model, task=NoisyTask(), device=place, heartbeat=SimpleNamespace, directory=out
        )
        [found] = evaluate(given, stream)
    return found.metrics, [path.name for path in found.files]


def test_the_results_are_those_that_pycocotools_reads(split: Path, tmp_path: Path) -> None:
    """Of the split's own COCO JSON, with the ids of its categories; masks by the areas of masks."""
    values, files = evaluated(split, tmp_path)
    assert files == ["detections.json"]
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {one["category_id"] for one in results} <= {*CATEGORIES}
    ids = [one["image_id"] for one in results]
    assert len([*groupby(ids)]) == len({*ids}), "an image is written at once"
    with redirect_stdout(StringIO()):
        truth = COCO(str(write_coco_json(split)))
        for name, iou_type in (("box", "bbox"), ("mask", "segm")):
            kept = [{k: v for k, v in one.items() if name == "box" or k != "bbox"} for one in results]
            run = COCOeval(truth, truth.loadRes(kept), iou_type)
            for step in (run.evaluate, run.accumulate, run.summarize):
                step()
            wanted = [None if value == -1 else value for value in run.stats.tolist()]
            assert [values[f"{name}_{figure}"] for figure in FIGURES] == pytest.approx(wanted, abs=1e-12)
    assert values["images"] == COUNT


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_change_nothing_and_the_first_one_writes(split: Path, tmp_path: Path, ranks: int) -> None:
    """Eleven images: the last batches of some ranks are padding."""
    for name in "ab":
        (tmp_path / name).mkdir()
    wanted, _ = evaluated(split, tmp_path / "a")
    first, *others = run_on_ranks(evaluated, ranks, split, tmp_path / "b")
    for found, _ in (first, *others):
        assert found | {"images_s": 0} == wanted | {"images_s": 0}
    assert [files for _, files in (first, *others)] == [["detections.json"], *[[]] * (ranks - 1)]
    one, other = ((tmp_path / name / "detections.json").read_bytes() for name in "ab")
    assert one == other
