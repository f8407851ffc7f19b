"""State that no optimizer knows, the sigmoid router's balancing bias, is saved and loaded with the rest."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import swin_moe
from parallel.checkpoint.load import load_checkpoint, load_weights
from parallel.checkpoint.manifest import CheckpointError
from parallel.experts.names import persistent_buffers
from parallel.zero.master_weights import MasterWeights
from swin_moe import build_model
from tests.distributed import run_on_ranks
from tests.parallel.checkpoint.saving import save_checkpoint
from tests.parallel.training import EXPERTS, Layout, Run, model_config

SIGMOID = Layout(world=2, ep=2, slices=2, stage=1, micro=8, router="sigmoid")
STEPS = 2**40 + torch.arange(EXPERTS)  # no float of 32 bits could carry them


def save_with_buffers(directory: Path) -> None:
    run = Run.start(SIGMOID)
    for name, buffer in persistent_buffers(run.engine.module).items():
        assert name.endswith("router.bias_steps")
        buffer.copy_(STEPS)
    save_checkpoint(directory, 1, MasterWeights(run.engine.deepspeed), run.mesh, {})


def load_with_buffers(path: Path) -> list[Tensor]:
    run = Run.start(replace(SIGMOID, world=1, ep=1, slices=1, micro=16, precision="bf16"))
    load_checkpoint(path, MasterWeights(run.engine.deepspeed), EXPERTS)
    return list(persistent_buffers(run.engine.module).values())


def test_buffers_of_the_router_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    run_on_ranks(save_with_buffers, 2, tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "step-00000001"
    fresh, again, twice = (build_model(model_config(router="sigmoid"), seed=99) for _ in range(3))
    load_weights(path, fresh, EXPERTS)
    swin_moe.load_weights(again, path)
    swin_moe.save_weights(again, tmp_path / "model.safetensors", "native")
    swin_moe.load_weights(twice, tmp_path / "model.safetensors")
    found = [persistent_buffers(model).values() for model in (fresh, again, twice)]
    for buffers in (*found, run_on_ranks(load_with_buffers, 1, path)[0]):
        assert len(buffers) == 2
        assert all(torch.equal(buffer, STEPS) for buffer in buffers)
    with pytest.raises(CheckpointError, match=r"0 tensors missing \[\], 2 unknown \['buffer/layers.1"):
        load_weights(path, build_model(model_config()), EXPERTS)
