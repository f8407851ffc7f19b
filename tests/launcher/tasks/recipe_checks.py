"""What the tests of recipes of dense tasks share."""

import pytest

from launcher.config.load import load_config
from swin_moe.config import ModelConfig
from tests.launcher.refusals import refused


def assert_position_biases_of(model: ModelConfig, classifier: str) -> None:
    """Relative to the windows that they were learned with, as `--pretrained` demands."""
    learned = load_config(classifier).model
    assert model.depths == learned.depths
    stages = range(len(model.depths))
    assert [model.pretrained_window(i) for i in stages] == [learned.stage_window(i) for i in stages]


def assert_told_to_pack(capsys: pytest.CaptureFixture[str], recipe: str, command: str) -> None:
    """`check` of a recipe, with overrides, whose data are missing says how to make them."""
    lines = refused(capsys, "check", *recipe.split()).splitlines()
    told = [line for line in lines if line.startswith(("  data.train: ", "  data.val: "))]
    assert len(told) == 2
    assert all(line.endswith(f"swin-moe shards pack {command}") for line in told)
