"""A minimal configuration in the current folder: loaded, or refused with a message."""

from pathlib import Path

import pytest

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import DataConfig, RunConfig
from swin_moe.config import ModelConfig

BASE = "run_dir: runs/a\nmodel: {}\ndata: {train: t, val: v}\n"
BASE_CONFIG = RunConfig(run_dir="runs/a", model=ModelConfig(), data=DataConfig(train="t", val="v"))


def load(text: str, *overrides: str) -> RunConfig:
    Path("base.yaml").write_text(text, encoding="utf-8")
    return load_config("base.yaml", overrides)


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)
