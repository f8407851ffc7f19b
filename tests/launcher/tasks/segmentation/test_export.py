"""A trained run for transformers, which gives its logits."""

from pathlib import Path

import pytest
import torch
from torch import nn

from launcher.predict.answerer import Asked
from launcher.predict.answerers import open_answerer
from launcher.predict.task_answerer import TaskAnswerer
from tests.distributed import run_on_ranks
from tests.launcher.running import Outcome, command, run_alone
from tests.launcher.tasks.segmentation.pixel_shards import CLASSES, line, pack_pixels, sample
from tests.models import randn

SWIN = (  # what transformers has: three stages, as its auxiliary head reads the third map
    "model.moe=null",
    "model.position_bias=table",
    "model.mlp_fc2_bias=true",
    "model.window_padding=visible",
    "model.depths=[1, 1, 1]",
    "model.num_heads=[1, 2, 2]",
    "segmentation.head.auxiliary_stage=2",
    "train.duration=2 steps",
    "train.eval_every=2 steps",
    "train.global_batch_size=8",
    "optim.base_lr=0.64",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swin")
    run_alone(*line(pack_pixels(path / "shards", 16, 2), path / "run", *SWIN))
    return path / "run"


def exported(source: Path, out: Path) -> Outcome:
    return command("export", str(source), str(out), "--to", "hf")


def logits(source: Path, images: torch.Tensor) -> torch.Tensor:
    """Of the model that a run has trained, at the size of the images."""
    answerer = open_answerer(source, asked=Asked())
    assert isinstance(answerer, TaskAnswerer)
    with torch.no_grad():
        found: torch.Tensor = answerer.model(images).logits
    return nn.functional.interpolate(found, images.shape[2:], mode="bilinear", align_corners=False)


def test_transformers_runs_a_trained_model(run: Path, tmp_path: Path) -> None:
    """Weights, running statistics and the names of the classes; at the size of training and at another."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    (outcome,) = run_on_ranks(exported, 1, run, tmp_path / "hf")
    assert outcome.code == 0, outcome.err
    assert "mean [0.485, 0.456, 0.406]" in outcome.out
    theirs = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    real = torch.from_numpy(sample(3)["image"]).permute(2, 0, 1)[None] / 255
    for images in (real, randn(2, 3, 32, 32)):
        with torch.no_grad():
            expected = theirs(images).logits
        (ours,) = run_on_ranks(logits, 1, run, images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
