"""What a GPU cannot do, or does slowly, is said before it is tried."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.config.schema import ParallelConfig, RunConfig
from launcher.validation.rules import advice, rule_errors
from swin_moe.config import ModelConfig
from tests.models import small_run

SWIN = ModelConfig()  # 224 pixels, windows of 7 x 7 tokens of 4 x 4 pixels: 64 in the first stage


def config_of(micro: int, model: ModelConfig = SWIN, **parallel: Any) -> RunConfig:
    options = ParallelConfig(**parallel)
    return small_run(model, micro_batch_size=micro, train={"precision": "bf16"}, parallel=options)


@pytest.mark.parametrize(
    ("micro", "model", "fits"),
    [
        (1023, SWIN, None),  # 65,472 windows
        (1024, SWIN, 512),  # 65,536
        (4096, SWIN, 512),
        (1024, replace(SWIN, attention_chunk=4096), None),
        (1024, replace(SWIN, attention="mlp"), None),
        (456, replace(SWIN, image_size=336, window_size=7), 256),  # 144 windows an image: 65,664
        (455, replace(SWIN, image_size=336, window_size=7), None),
        (5000, replace(SWIN, image_size=(224, 28)), None),  # 8 x 1 windows
        (9000, replace(SWIN, image_size=(224, 28)), 4096),
    ],
)
def test_a_micro_batch_of_too_many_windows_is_refused(
    micro: int, model: ModelConfig, fits: int | None
) -> None:
    errors = [error for error in rule_errors(config_of(micro, model), 1) if "windows" in error]
    if fits is None:
        assert errors == []
        return
    (error,) = errors
    assert error.startswith(f"train.micro_batch_size ({micro}) x the windows of an image (")
    assert f"train.micro_batch_size={fits}, " in error
    assert [e for e in rule_errors(config_of(fits, model), 1) if "windows" in e] == []


@pytest.mark.parametrize(
    ("stage", "device", "precision", "lines"),
    [(0, "cuda", "bf16", 1), (1, "cuda", "bf16", 0), (0, "cpu", "bf16", 0), (0, "cuda", "fp32", 0)],
)
def test_bf16_at_stage_0_is_advised_against_on_a_gpu(
    stage: Any, device: str, precision: Any, lines: int
) -> None:
    config = config_of(8, zero_stage=stage)
    config = replace(config, train=replace(config.train, precision=precision))
    assert len(advice(config, device)) == lines
