"""A model built in shards: every rank holds its part alone, and gathered it is the model built whole."""

from dataclasses import replace

import pytest
import torch

from parallel.mesh import Mesh, ParallelDims, build_mesh
from swin_moe.config import ModelConfig, ModelError, MoEConfig
from swin_moe.model import build_model
from tests.distributed import run_on_ranks

SWINV2 = ModelConfig(
    image_size=16,
    num_classes=10,
    embed_dim=12,
    depths=(2, 2),
    num_heads=(2, 4),
    window_size=2,
    attention="cosine",
    position_bias="log_cpb",
    norm="post",
    main_norm_every=2,
)


def build_in_shards() -> tuple[list[tuple[int, int]], list[str], int]:
    """Numbers held against numbers of each parameter, the names that differ, the parameters."""
    from parallel.sharded import whole

    mesh = build_mesh(ParallelDims(world_size=torch.distributed.get_world_size()))
    model = build_model(SWINV2, seed=3, mesh=mesh, sharded=True)
    held = [(p.ds_tensor.numel(), p.ds_numel) for p in model.parameters()]  # type: ignore[attr-defined]
    assert all(p.numel() == 0 for p in model.parameters())
    expected, different = dict(build_model(SWINV2, seed=3).named_parameters()), []
    for name, parameter in model.named_parameters():
        with whole(parameter):
            if not torch.equal(parameter, expected[name]):
                different.append(name)
    buffers = dict(build_model(SWINV2, seed=3).named_buffers())
    different += [name for name, buffer in model.named_buffers() if not torch.equal(buffer, buffers[name])]
    return held, different, len(expected)


def test_each_rank_holds_its_part_and_together_it_is_the_model() -> None:
    for held, different, names in run_on_ranks(build_in_shards, 2):
        assert different == []
        assert len(held) == names
        assert all(here == -(-numbers // 2) for here, numbers in held)  # halves, the last padded


def test_what_cannot_be_sharded_is_refused() -> None:
    with pytest.raises(ModelError, match="needs a mesh"):
        build_model(SWINV2, sharded=True)
    moe = MoEConfig(blocks=((), (1,)), num_experts=2)
    with pytest.raises(ModelError, match="cannot have experts"):
        build_model(replace(SWINV2, moe=moe), mesh=Mesh(dims=ParallelDims()), sharded=True)
