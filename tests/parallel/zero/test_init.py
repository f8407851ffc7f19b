"""A model built in shards: every rank holds its part alone, and gathered it is the model built whole."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from parallel.ranks.mesh import LayoutError, ParallelDims, build_mesh
from swin_moe import load_weights, save_weights
from swin_moe.backbone.model import SwinTransformer, build_model
from swin_moe.config import ModelConfig
from swin_moe.errors import ModelError
from tests.distributed import run_on_ranks
from tests.models import V2, small_swin
from tests.parallel.training import Layout, Run, model_config

SWINV2 = small_swin(**V2, image_size=16, embed_dim=12, window_size=2, extra_norm_period=2)
MOE = model_config()
EITHER = pytest.mark.usefixtures("either_processor")  # of what is the same at every layout of experts
LAYOUTS = [(1, 1), (2, 1), (2, 2)]  # ep_size and expert_tensor_parallel_size of two ranks


def build(config: ModelConfig, ep: int, slices: int, *, sharded: bool, seed: int = 3) -> SwinTransformer:
    world = torch.distributed.get_world_size()
    mesh = build_mesh(ParallelDims(world_size=world, ep_size=ep, expert_tensor_parallel_size=slices))
    return build_model(config, seed=seed, mesh=mesh, sharded=sharded)


def differences(model: SwinTransformer, expected: SwinTransformer) -> list[str]:
    """The names of what is not bit for bit the same."""
    from parallel.zero.init import gathered

    found, values = [], dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        with gathered(parameter):
            if not torch.equal(parameter, values[name]):
                found.append(name)
    buffers = dict(expected.named_buffers())
    return found + [name for name, buffer in model.named_buffers() if not torch.equal(buffer, buffers[name])]


def build_in_shards(config: ModelConfig, ep: int, slices: int) -> tuple[list[tuple[str, float]], list[str]]:
    """The share of each parameter that is here, and the names that differ."""
    model = build(config, ep, slices, sharded=True)
    named = list(model.named_parameters())
    assert all(p.numel() == 0 for _, p in named)
    held = [(name, p.ds_tensor.numel() / p.ds_numel) for name, p in named]  # type: ignore[attr-defined]
    return held, differences(model, build(config, ep, slices, sharded=False))


@EITHER
def test_each_rank_holds_its_part_and_together_it_is_the_model() -> None:
    for held, different in run_on_ranks(build_in_shards, 2, SWINV2, 1, 1):
        assert different == []
        assert all(0.5 <= share <= 1 for _, share in held)  # halves, the last padded
        assert sum(share > 0.5 for _, share in held) < len(held) / 5


@pytest.mark.parametrize(("ep", "slices"), LAYOUTS)
def test_experts_are_cut_over_the_ranks_that_hold_the_same_ones(ep: int, slices: int) -> None:
    for held, different in run_on_ranks(build_in_shards, 2, MOE, ep, slices):
        assert different == []
        experts = {share for name, share in held if ".experts." in name}
        assert experts == {0.5 if ep == 1 else 1.0}
        assert any(share == 0.5 for name, share in held if ".experts." not in name)


def load_into_shards(path: Path, ep: int, slices: int) -> list[str]:
    model = build(MOE, ep, slices, sharded=True)
    load_weights(model, path)
    return differences(model, build(MOE, ep, slices, sharded=False, seed=8))


@pytest.mark.parametrize(("ep", "slices"), LAYOUTS)
def test_weights_from_a_file_reach_every_shard(tmp_path: Path, ep: int, slices: int) -> None:
    save_weights(build_model(MOE, seed=8), tmp_path / "model.safetensors", "native")
    assert run_on_ranks(load_into_shards, 2, tmp_path / "model.safetensors", ep, slices) == [[], []]


def test_what_cannot_be_sharded_is_refused() -> None:
    with pytest.raises(ModelError, match="needs a mesh"):
        build_model(SWINV2, sharded=True)


def build_rounded(dtype: torch.dtype) -> str:
    """What is said of parameters that DeepSpeed builds in another dtype than the one requested."""
    import deepspeed

    set_dtype = "_set_dtype"  # where 0.19.8 decides for itself
    with mock.patch.object(deepspeed.zero.Init, set_dtype, lambda self, *_: setattr(self, "dtype", dtype)):
        try:
            build(MOE, 1, 1, sharded=True)
        except LayoutError as error:
            return str(error)
    return ""


@EITHER
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_are_refused(dtype: torch.dtype) -> None:
    for message in run_on_ranks(build_rounded, 2, dtype):
        assert (
            f"in another dtype than torch.float32 (the first is patch_embed.proj.weight, {dtype})" in message
        )
        assert "parallel.zero_stage" in message


def train_in_bf16(sharded: bool) -> tuple[list[float], set[torch.dtype]]:
    """Losses of three steps at stage 3, and the dtypes in which linear layers computed."""
    layout = Layout(world=2, ep=2, stage=3, micro=4, precision="bf16")
    seen: set[torch.dtype] = set()

    def watch(model: torch.nn.Module, layout: Layout) -> torch.nn.Module:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        return model

    return Run.start(layout, watch, sharded=sharded).train(3).losses, seen


@pytest.mark.long
@EITHER
def test_a_model_built_in_shards_computes_in_the_runs_precision() -> None:
    """As one that was built whole; the order in which the gradient's norm is summed is another."""
    (losses, dtypes), _ = run_on_ranks(train_in_bf16, 2, True)
    (expected, same_dtypes), _ = run_on_ranks(train_in_bf16, 2, False)
    assert torch.bfloat16 in dtypes
    assert dtypes == same_dtypes
    assert losses[0] == expected[0]
    assert losses == pytest.approx(expected, rel=1e-3)
