"""Checkpoints made of tensors at hand: no model, no training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.config.load import dump_config, load_config
from parallel.checkpoint.commit import path_of
from tests.launcher.running import CONFIG

Say = Callable[..., tuple[int, str, str]]  # a `swin-moe checkpoint` command: status, output, errors
KINDS = ("master", "exp_avg", "exp_avg_sq")


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Three parameters with their moments, and a buffer of whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"{kind}/{name}.weight" for kind in KINDS for name in "abc"]
    found = {name: torch.randn(4, 3, generator=generator) for name in names}
    return found | {"buffer/router.bias_steps": torch.arange(4) + seed}


def record(samples: int = 0, *overrides: str, **more: Any) -> dict[str, Any]:
    """What a run writes beside its tensors."""
    config = dump_config(load_config(CONFIG, overrides))
    return {"state": {"data": {"samples": samples}}, "config": config, "versions": {}, **more}


def at(run: Path, step: int) -> Path:
    """A checkpoint of a run."""
    return path_of(run / "checkpoints", step)


def flip(path: Path, bit: int = 1) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= bit
    path.write_bytes(data)
