"""What one rank of eight sends and reads in a layer of experts, without the other seven.

torch's fake process group stands for them; an all-to-all copies what is sent, so that every rank is alike.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallel.experts.exchange import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import ParallelDims, build_mesh
from swin_moe.random.keyed import sample_keys
from swin_moe.recipes import load_model_config
from tests.gpu.counting import Count, counted, gpu_paths
from tests.models import moe_layer

__all__ = ["gpu_paths"]
pytestmark = pytest.mark.usefixtures("gpu_paths")

WORLD = 8
MOE_S = "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"


class Done:
    """A collective that is over."""

    def wait(self) -> None:
        """Wait for nothing."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Eight ranks, of which this is the first; the all-to-alls by dtype."""
    counts: Counter[str] = Counter()

    def all_to_all(out: Tensor, rows: Tensor, receive: Any, send: Any, **_: Any) -> Done:
        assert (sum(send), sum(receive)) == (len(rows), len(out))
        counts[str(rows.dtype).removeprefix("torch.")] += 1
        out.copy_(rows.view(-1)[: out.numel()].view_as(out))
        return Done()

    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    monkeypatch.setattr("parallel.ranks.collectives.dist.all_to_all_single", all_to_all)
    monkeypatch.setattr("parallel.ranks.mesh.gather_objects", lambda value, group=None: [value] * WORLD)
    yield counts
    dist.destroy_process_group()


def step(options: ExchangeOptions, **moe: Any) -> tuple[Count, Tensor]:
    """One layer of stage 3 of Swin-MoE-S, small in width alone; every token goes to every expert alike."""
    config = load_model_config(MOE_S, moe={"routing_group_images": 8, **moe}).moe
    mesh = build_mesh(ParallelDims(world_size=WORLD, ep_size=WORLD), ranks_per_node=4)
    placement = ExpertParallel.over(mesh, config.num_experts, options)
    layer = moe_layer(config, dim=32, hidden=64, placement=placement, fc2_bias=False).to(torch.bfloat16)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.randn(8, 144, 32, dtype=torch.bfloat16, requires_grad=True)
    layer.router.weight.data.zero_()  # the noise alone chooses: any expert has as many tokens
    with counted() as count:
        y, stats = layer.train()(tokens, sample_keys(0, torch.arange(8)))
        (y.float().sum() + stats.loss).backward()
    return count, tokens


CASES: dict[str, tuple[ExchangeOptions, dict[str, Any], dict[str, int], int]] = {
    # rows go out and back, and their gradients; keys and counts go out once
    "dropless": (
        ExchangeOptions(),
        {"capacity_factor": 0.0, "batch_prioritized": False},
        {"bfloat16": 4, "int64": 2},
        1,
    ),
    "capacity": (ExchangeOptions(), {}, {"bfloat16": 4, "int64": 2}, 1),
    "no dropout": (ExchangeOptions(), {"expert_dropout": 0.0}, {"bfloat16": 4, "int64": 1}, 1),
    "padded": (ExchangeOptions(padded=True), {}, {"bfloat16": 4, "int64": 1}, 0),
    # two pieces; counts once
    "overlap": (ExchangeOptions(overlap=2), {}, {"bfloat16": 8, "int64": 3}, 1),
    # twice as many legs
    "hierarchical": (ExchangeOptions(hierarchical=True), {}, {"bfloat16": 8, "int64": 4}, 1),
    # weights alone, and their gradients
    "weights": (ExchangeOptions(strategy="dp"), {}, {"bfloat16": 2}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_collectives_and_reads_of_a_layer(case: str, sent: Counter[str]) -> None:
    options, moe, collectives, reads = CASES[case]
    count, tokens = step(options, **moe)
    assert sent == collectives
    assert count.reads.total() == reads, count.reads
    assert tokens.grad is not None
