"""Other label spaces: what is right by hand, and every mistake in a mapping file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.stream.batch import Batch
from launcher.config.load import ConfigError
from launcher.evaluation.labels import FORMAT, RelabelledMetric, read_labels, right_sums
from swin_moe.backbone.model import ModelOutput
from swin_moe.heads.classification import evaluation_sums

CPU = torch.device("cpu")


def space_of(tmp_path: Path, num_classes: int = 4, **said: Any) -> RelabelledMetric:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"format": FORMAT, **said}))
    return RelabelledMetric(CPU, read_labels(path, num_classes))


def batch(labels: list[int], positions: list[int], weights: list[float]) -> Batch:
    return Batch(
        tensors={"image": torch.zeros(len(labels), 3, 1, 1), "label": torch.tensor(labels)},
        positions=torch.tensor(positions),
        weights=torch.tensor(weights),
    )


def output(*rows: list[float]) -> ModelOutput:
    """Logits that are the logarithms of these probabilities."""
    return ModelOutput(logits=torch.tensor(rows).log(), moe={})


def test_model_classes_are_gathered_and_summed(tmp_path: Path) -> None:
    """Classes 0 and 3 of the model are class 1 of the data set, 2 is class 0, 1 is none: 0.3 and 0.1 + 0.2
    of 0.6 that are left, so losses of log 2 both; and 0.05 and 0.85 of 0.9 for the second image."""
    task = space_of(tmp_path, model_classes=[1, None, 0, 1])
    found = output([0.1, 0.4, 0.3, 0.2], [0.8, 0.1, 0.05, 0.05])
    torch.testing.assert_close(task.scores(found).exp(), torch.tensor([[0.3, 0.3], [0.05, 0.85]]))
    loss, hits, hits5, images = task.sums(found, batch([0, 0], [0, 1], [1, 1])).tolist()
    assert loss == pytest.approx(math.log(2) - math.log(0.05 / 0.9), rel=1e-5)
    assert (hits, hits5, images) == (1, 2, 2)


def test_the_identity_changes_nothing(tmp_path: Path) -> None:
    task, labels = space_of(tmp_path, model_classes=[0, 1, 2, 3]), batch([2, 0], [0, 1], [1, 1])
    found = ModelOutput(logits=torch.randn(2, 4), moe={})
    wanted = evaluation_sums(found.logits, labels["label"], labels.weights)
    torch.testing.assert_close(task.sums(found, labels), wanted)


def test_any_of_the_right_classes_is_a_hit(tmp_path: Path) -> None:
    """The stream's labels do not count. Image 5 has two right classes of 0.2 and 0.3, image 6 none, image 7
    a wrong best; the last one pads."""
    images: list[list[int]] = [[]] * 5 + [[1, 2], [], [3]]
    task = space_of(tmp_path, images=images)
    found = output([0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.15, 0.05], [0.25] * 4)
    sums = task.sums(found, batch([0, 0, 0, 0], [5, 6, 7, -1], [1, 1, 1, 0])).tolist()
    assert sums == pytest.approx([-math.log(0.5) - math.log(0.05), 0, 2, 2], rel=1e-5)
    task = space_of(tmp_path, images=[[3, 1]])
    assert task.sums(found, batch([0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0])).tolist()[1] == 1


def test_a_top_five_of_more_classes() -> None:
    right = torch.zeros(1, 8, dtype=torch.bool)
    right[0, 6] = True
    scores = torch.arange(8.0, 0.0, -1.0)[None]  # class 6 is the seventh
    assert right_sums(scores, right, torch.ones(1))[2] == 0
    right[0, 4] = True
    assert right_sums(scores, right, torch.ones(1))[2] == 1


WRONG = [
    ([], "must be a JSON object"),
    ({"format": "other"}, "must be a JSON object"),
    ({"format": FORMAT}, "needs model_classes, images or both"),
    ({"format": FORMAT, "imges": []}, "no such entry: imges"),
    ({"format": FORMAT, "model_classes": [0, 1]}, "model_classes has 2 entries, the model 4 classes"),
    ({"format": FORMAT, "model_classes": 3}, "model_classes has no list of entries"),
    ({"format": FORMAT, "model_classes": [0, 1, True, 2]}, "model_classes[2] (True) must be a class"),
    ({"format": FORMAT, "model_classes": [0, 2, None, 3]}, "gives no class of the model to 1"),
    ({"format": FORMAT, "model_classes": [0, 10**12, 1, 2]}, "speaks of 1000000000001 classes"),
    ({"format": FORMAT, "model_classes": [None] * 4}, "speaks of 0 classes"),
    ({"format": FORMAT, "images": {}}, "images must be a list"),
    ({"format": FORMAT, "images": [[0], [4]]}, "images[1] ([4]) must be a list of classes in 0 ... 3"),
    ({"format": FORMAT, "images": [[], []]}, "all without a right class"),
]


@pytest.mark.parametrize(("said", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_file_is_refused(tmp_path: Path, said: Any, words: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="--labels") as caught:
        read_labels(path, 4)
    assert words in str(caught.value)


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read it"):
        read_labels(tmp_path / "labels.json", 4)
