"""Blocks of a stage share their compiled graphs, and compute what they compute without a compiler."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from swin_moe import ModelConfig, build_model
from swin_moe.backbone.stage import compile_blocks
from swin_moe.random.keyed import sample_keys
from tests.models import V2, images_of, small_moe, small_swin

DEEP = small_swin(
    image_size=64, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), drop_path_rate=0.3, init_std=0.3
)
MOE = small_moe(blocks=((), (), (1, 3, 5), ()), num_experts=2, expert_dropout=0.1)

SLOW = pytest.mark.slow


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Every graph that torch.compile is asked for; they run as they are."""
    torch._dynamo.reset()
    made: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        made.append(graph)
        return graph

    compile_function = torch.compile

    @functools.wraps(compile_function)
    def with_backend(*args: Any, **options: Any) -> Any:
        return compile_function(*args, **options, backend=keep)

    monkeypatch.setattr(torch, "compile", with_backend)
    return made


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "most"),
    [
        (DEEP, 4),  # a pair a stage
        pytest.param(replace(DEEP, drop_rate=0.1), 4, marks=SLOW),  # each dropout has a site of its own
        pytest.param(replace(DEEP, depths=(2, 2, 18, 2)), 4, marks=SLOW),
        # a pair and a single block of depths 5 and 3
        pytest.param(replace(DEEP, depths=(1, 2, 5, 3)), 7, marks=SLOW),
        (replace(DEEP, **V2), 4),
        pytest.param(replace(DEEP, attention="mlp"), 4, marks=SLOW),
        pytest.param(replace(DEEP, activation_checkpoint_every=2), 4, marks=SLOW),
        pytest.param(  # maps of 3 x 16 x 16 to 3 x 2 x 2 tokens in windows of 2 x 3 x 3
            replace(DEEP, frames=6, window_frames=2, window_size=3, window_padding="fitted"), 4, marks=SLOW
        ),
        (replace(DEEP, moe=MOE), 5),  # 3 pairs, a dense block, and the attention of blocks with experts
    ],
    ids=["swin", "dropout", "deep", "odd", "v2", "mlp", "checkpointed", "clips", "experts"],
)
def test_blocks_of_a_stage_share_graphs(
    config: ModelConfig, most: int, graphs: list[torch.fx.GraphModule]
) -> None:
    """At most a pair a stage; a second step, with other draws and weights, makes no further graph."""
    model, plain = (build_model(config, seed=1).train() for _ in range(2))
    compile_blocks(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for step in range(2):
        images, keys = images_of(config, seed=step), sample_keys(step, torch.arange(2))
        found, expected = (m(images, keys) for m in (model, plain))
        torch.testing.assert_close(found.logits, expected.logits)
        for m, out in ((model, found), (plain, expected)):
            (out.logits.square().sum() + out.aux_loss).backward()
            with torch.no_grad():
                for parameter in m.parameters():
                    parameter.sub_(0.01 * parameter.grad)
        assert len(graphs) <= most
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
