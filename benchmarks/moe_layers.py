"""The contestants of benchmarks/moe.py, their tokens, and how a step of one is timed and weighed.

Legend: T tokens, C channels, H hidden, E experts, k choices a token, S slots of an expert.
Every contestant is a module that takes (T, C) and returns (T, C) and its balance loss. All of them route by
the same weights, so that the same tokens want the same experts.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from allocator import cpu_peak_bytes
from torch import Tensor, nn

from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import Mesh
from swin_moe.moe.capacity import capacity
from swin_moe.moe.layer import MoELayer
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe.routers.base import RoutingRequest
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import SiteCounter, fold_in, sample_keys

DIM, HIDDEN, LENGTH = 384, 1536, 144  # Swin-MoE-S, stage 3 at 192 x 192: 12 x 12 tokens an image
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """What one group of contestants is measured on; `skew` is the largest load over the mean one."""

    tokens: int = 4608
    num_experts: int = 8
    top_k: int = 1
    dtype: str = "fp32"
    skew: float = 1.1
    device: str = "cpu"
    world_size: int = 1

    @property
    def flops(self) -> int:
        """Of a training step: forward and twice that backward, two matrices, a multiply-add as 2."""
        return 3 * 2 * 2 * self.tokens * self.top_k * DIM * HIDDEN


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant: who, at which capacity (0: dropless; None: the dense MLP has none), in which order."""

    impl: str
    capacity_factor: float | None = None
    prioritized: bool = False
    overlap: int = 1
    padded: bool = False  # every expert gets as many rows, of our layer
    dropout: float = 0.0  # of the experts' hidden elements, of our layer


def routed_tokens(case: LayerCase, seed: int = 0) -> Tensor:
    """Tokens that want their experts as `case.skew` says: (T, C), a leaf that wants its gradient.

    The first E channels are the logits: 4 at the wanted expert and noise of .1 elsewhere, which also draws
    the second choices. Expert 0 is wanted by skew * T / E tokens, the others evenly.
    """
    generator = torch.Generator().manual_seed(seed)
    crowd = round(case.skew * case.tokens / case.num_experts)
    others = torch.arange(case.tokens - crowd) % (case.num_experts - 1) + 1
    wanted = torch.cat([torch.zeros(crowd, dtype=torch.int64), others])
    wanted = wanted[torch.randperm(case.tokens, generator=generator)]
    tokens = 0.1 * torch.randn(case.tokens, DIM, generator=generator)
    tokens[torch.arange(case.tokens), wanted] += 4.0
    return tokens.to(case.device, DTYPES[case.dtype]).requires_grad_()


class Dense(nn.Module):
    """The bound: one MLP of as many FLOPs, k * H wide."""

    def __init__(self, case: LayerCase, entry: Entry, mesh: Mesh) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(DIM, case.top_k * HIDDEN), nn.Linear(case.top_k * HIDDEN, DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A zero stands where the others have their loss."""
        return self.fc2(F.gelu(self.fc1(x))), x.new_zeros(()).requires_grad_()


class Native(nn.Module):
    """Our layer with the options of Swin-MoE, and all tokens in one routing group, as the others decide."""

    def __init__(self, case: LayerCase, entry: Entry, mesh: Mesh) -> None:
        super().__init__()
        assert entry.capacity_factor is not None
        images = case.tokens // LENGTH
        config = MoEConfig(
            blocks=(),
            num_experts=case.num_experts,
            top_k=case.top_k,
            capacity_factor=entry.capacity_factor,
            routing_group_images=images,
            batch_prioritized=entry.prioritized,
            expert_dropout=entry.dropout,
        )
        placement = ExpertParallel.over(mesh, case.num_experts)
        self.call = RoutingOverrides(
            exchange=replace(placement.options, overlap=entry.overlap, padded=entry.padded)
        )
        self.layer = MoELayer(DIM, HIDDEN, config, placement, fc2_bias=True, sites=SiteCounter())
        self.gate = self.layer.router.weight
        self.keys = sample_keys(0, torch.arange(images, device=case.device))
        self.request = RoutingRequest(
            groups=1,
            length=LENGTH,
            top_k=case.top_k,
            factor=entry.capacity_factor,
            slots=capacity(entry.capacity_factor, case.tokens, case.num_experts, case.top_k),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The layer itself."""
        y, stats = self.layer(x.view(-1, LENGTH, DIM), self.keys, self.call)
        return y.view_as(x), stats.loss

    def route(self, x: Tensor) -> Any:
        """The router's decision for tokens (T, C)."""
        keys = fold_in(self.keys[:, None], torch.arange(LENGTH, device=x.device)).view(-1)
        return self.layer.router(x, keys, self.request)

    def routing_step(self, x: Tensor) -> None:
        """Tokens to plan, and the router's backward: what the layer does besides moving and computing."""
        routing = self.route(x)
        routing.plan(groups=1, slots=self.request.slots, padded=False)
        (routing.gates.sum() + sum(routing.losses.values())).backward()
        self.zero_grad()
        x.grad = None


class Einsum(Native):
    """Dispatch and combine as products with a (T, E, S) mask (GShard, Lepikhin et al. 2020, algorithm 2)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route as ours, then mix by einsum."""
        routing, experts = self.route(x), self.layer.experts
        index, slots = routing.expert_index.t(), self.request.slots
        chosen = F.one_hot(index, len(self.gate))  # (k, T, E)
        queue = chosen.flatten(0, 1).cumsum(0).view_as(chosen) - 1  # first choices before second ones
        place = (queue * chosen).sum(-1)  # (k, T)
        slot = F.one_hot(place.clamp(max=slots), slots + 1)[..., :slots]  # (k, T, S), zero where dropped
        gates = routing.gates.t().to(x.dtype)
        combine = torch.einsum("kt,kte,kts->tes", gates, chosen.to(x.dtype), slot.to(x.dtype))
        rows = torch.einsum("tes,tc->esc", (combine > 0).to(x.dtype), x)
        hidden = F.gelu(torch.baddbmm(experts.fc1_bias[:, None], rows, experts.fc1_weight))
        rows = torch.baddbmm(experts.fc2_bias[:, None], hidden, experts.fc2_weight)
        return torch.einsum("tes,esc->tc", combine, rows), routing.losses["balance"]


class Loop(Native):
    """What one writes first: for every expert its tokens, its slice of the weights, and an index_add."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route as ours, then expert after expert."""
        routing, w = self.route(x), self.layer.experts
        y = torch.zeros_like(x)
        for e in range(len(w.fc1_weight)):
            token, choice = torch.where(routing.expert_index == e)
            hidden = F.gelu(x[token] @ w.fc1_weight[e] + w.fc1_bias[e])
            rows = hidden @ w.fc2_weight[e] + w.fc2_bias[e]
            y = y.index_add(0, token, routing.gates[token, choice, None].to(x.dtype) * rows)
        return y, routing.losses["balance"]


class SortedTokens(nn.Module):
    """The way of torchtitan's MoE layer: dropless, no read on the host, no fused kernel of its own.

    Tokens are sorted by expert, both layers are grouped products, and the answers are added to their tokens.
    As there, experts have no biases, and no loss balances the load. The products are those of the others, not
    SwiGLU's three.
    """

    def __init__(self, case: LayerCase, entry: Entry, mesh: Mesh) -> None:
        super().__init__()
        self.top_k = case.top_k
        self.gate = nn.Parameter(torch.empty(case.num_experts, DIM))
        self.fc1 = nn.Parameter(torch.empty(case.num_experts, DIM, HIDDEN))
        self.fc2 = nn.Parameter(torch.empty(case.num_experts, HIDDEN, DIM))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sort, multiply, add; a zero stands where the others have their loss."""
        scores = F.linear(x, self.gate).float().softmax(dim=1)
        gates, expert = scores.topk(self.top_k, dim=1)  # (T, k)
        load = torch.zeros(len(self.gate), dtype=torch.int64, device=x.device)
        load = load.scatter_add_(0, expert.view(-1), torch.ones_like(expert.view(-1)))
        order = expert.view(-1).argsort(stable=True)
        token = order // self.top_k
        ends = load.cumsum(0, dtype=torch.int32)
        hidden = F.gelu(F.grouped_mm(x.index_select(0, token), self.fc1, offs=ends))
        rows = F.grouped_mm(hidden, self.fc2, offs=ends)
        rows = rows * gates.view(-1)[order, None].to(rows.dtype)
        return torch.zeros_like(x).index_add(0, token, rows), x.new_zeros(()).requires_grad_()


class Tutel(nn.Module):
    """Tutel's layer with the options of Swin-MoE."""

    def __init__(self, case: LayerCase, entry: Entry, mesh: Mesh) -> None:
        super().__init__()
        from tutel.moe import moe_layer  # type: ignore[import-not-found]

        self.moe = moe_layer(
            gate_type={
                "type": "top",
                "k": case.top_k,
                "fp32_gate": True,
                "gate_noise": 1.0,
                "capacity_factor": entry.capacity_factor,
            },
            model_dim=DIM,
            experts={
                "type": "ffn",
                "num_experts_per_device": case.num_experts // mesh.dims.ep_size,
                "hidden_size_per_expert": HIDDEN,
                "activation_fn": F.gelu,
            },
            batch_prioritized_routing=entry.prioritized,
            normalize_gate=False,
            is_gshard_loss=False,
        )
        self.gate = self.moe.gates[0].wg.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tutel leaves the loss on its output."""
        y = self.moe(x)
        return y, y.l_aux


class DeepSpeed(nn.Module):
    """DeepSpeed's MoE layer: its own loss, no gate noise, tokens in order of position."""

    def __init__(self, case: LayerCase, entry: Entry, mesh: Mesh) -> None:
        super().__init__()
        from deepspeed.moe.layer import MoE

        assert entry.capacity_factor is not None
        self.moe = MoE(
            DIM,
            nn.Sequential(nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM)),
            case.num_experts,
            ep_size=mesh.dims.ep_size,
            k=case.top_k,
            capacity_factor=entry.capacity_factor or 1.0,
            drop_tokens=entry.capacity_factor > 0,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        self.moe.set_deepspeed_parallelism()
        self.gate = self.moe.deepspeed_moe.gate.wg.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and loss; the expert counts are left."""
        y, loss, _ = self.moe(x)
        return y, loss


LAYERS: dict[str, type[nn.Module]] = {
    "dense": Dense,
    "native": Native,
    "deepspeed": DeepSpeed,
    "tutel": Tutel,
    "einsum": Einsum,
    "loop": Loop,
    "torchtitan-like": SortedTokens,
}


def build(case: LayerCase, entry: Entry, mesh: Mesh) -> nn.Module:
    """A contestant with weights of standard deviation .02, whose router reads the first E channels."""
    layer = LAYERS[entry.impl](case, entry, mesh)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.02)
        if hasattr(layer, "gate"):
            layer.gate.copy_(torch.eye(case.num_experts, DIM))
    return layer.to(case.device, DTYPES[case.dtype]).train()


def step(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """Forward and backward, the loss included; the gradients are dropped."""
    y, loss = layer(x)
    torch.autograd.backward([y, loss], [gradient, torch.full_like(loss, 0.01)])
    layer.zero_grad()
    x.grad = None


def works_of(case: LayerCase, entries: list[Entry], mesh: Mesh, seed: int = 0) -> dict[Entry, Work]:
    """A step of each contestant on the same tokens."""
    x = routed_tokens(case, seed)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device, x.dtype)
    return {entry: partial(step, build(case, entry, mesh), x, gradient) for entry in entries}


class LayerClock:
    """Seconds of a piece of work: of this process on the CPU, between events on a GPU."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def __call__(self, work: Work) -> float:
        """Seconds that `work` takes."""
        if self.on_gpu:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / 1e3
        began = time.process_time()
        work()
        return time.process_time() - began

    def medians(self, works: dict[Any, Work], rounds: int) -> dict[Any, float]:
        """Median seconds of each piece of work over interleaved rounds, after two to warm up."""
        for work in [*works.values()] * 2:
            work()
        seconds = [{key: self(work) for key, work in works.items()} for _ in range(rounds)]
        return {key: statistics.median(row[key] for row in seconds) for key in works}


def peak_bytes(work: Work, device: str) -> int:
    """The most bytes of tensors that a step holds beyond those that were there before it.

    So without parameters and tokens, with gradients.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    return cpu_peak_bytes(work)
