"""A dense model is one graph for torch.compile: no break, in training and in evaluation, of any size.

A model with experts breaks where the plan decides how many rows each expert gets, which the host must know.
"""

from dataclasses import replace

import pytest
import torch
import torch._dynamo

from swin_moe import build_model
from swin_moe.random.keyed import sample_keys
from tests.models import V2, images_of, randn, small_swin

SWIN = small_swin(depths=(2, 1), drop_rate=0.1)
SWIN_V2 = replace(SWIN, **V2, extra_norm_period=2)
KINDS = {
    "swin": SWIN,
    "v2": SWIN_V2,
    "mlp": replace(SWIN, attention="mlp"),
    "checkpointed": replace(SWIN_V2, activation_checkpoint_every=1),
    "clips": replace(SWIN, frames=4, window_frames=2, window_size=3, window_padding="fitted"),
}


@pytest.fixture(autouse=True)
def forget_graphs() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kind", "training", "side"),
    [
        ("swin", True, 32),
        pytest.param("swin", False, 32, marks=pytest.mark.slow),
        pytest.param("v2", True, 32, marks=pytest.mark.slow),  # checkpointed is of v2 as well
        pytest.param("v2", False, 37, marks=pytest.mark.long),
        pytest.param("mlp", True, 37, marks=pytest.mark.long),
        ("checkpointed", True, 32),
        pytest.param("clips", True, 37, marks=pytest.mark.slow),
    ],
)
def test_no_graph_break(kind: str, training: bool, side: int) -> None:
    """37 pixels make maps of 10 and 5 tokens, padded, whose masks are not the prepared ones."""
    model = build_model(KINDS[kind]).train(training)
    images = randn(2, 3, *KINDS[kind].input_sides[:-2], side, side)
    with torch.set_grad_enabled(training):
        found = torch._dynamo.explain(model)(images)  # which draws its keys
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", [pytest.param("swin", marks=pytest.mark.slow), "v2"])
def test_the_graph_computes_the_same(kind: str) -> None:
    """One full graph for training and one for evaluation; new weights reach both without another graph."""
    model = build_model(replace(KINDS[kind], init_std=0.3, depths=(2,), num_heads=(2,)))
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=count)
    images, keys = images_of(SWIN), sample_keys(0, torch.arange(2))
    for step in range(3):
        model.train()
        torch.testing.assert_close(compiled(images, keys).logits, model(images, keys).logits)
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(images, keys).logits, model(images, keys).logits)
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert graphs == 2, step
