"""A small model as weights and as an artifact, made once."""

from pathlib import Path

import pytest

from launcher.deploy.data import Places
from swin_moe.backbone.model import build_model
from swin_moe.weights.export import save_weights
from swin_moe.weights.input_spec import InputSpec
from tests.launcher.deploy.making import PLACES, make_here
from tests.models import randomize, small_moe, small_swin


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of five classes with experts; only read."""
    model = randomize(build_model(small_swin(moe=small_moe(top_k=2))))
    inputs = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), eval_crop=0.8, classes=tuple("abcde"))
    return save_weights(model, tmp_path_factory.mktemp("bench") / "small.safetensors", "native", inputs)


@pytest.fixture(scope="session")
def artifact(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the same model; only read."""
    out = tmp_path_factory.mktemp("artifacts") / "small"
    return make_here(out, weights, places=Places(train=PLACES.train))  # which has other classes
