"""Tutel (microsoft/tutel) carries the rows: its dispatch, exchange and combine around our router and experts.

Legend: T tokens, k choices, E experts, L local experts, R ranks of the expert group, C channels, G routing
groups, S = T / G, M = G * slots rows that an expert gets from each rank, empty ones included.

Tutel is used through its own interface: `moe.extract_critical` gives every choice its place at its expert,
`moe.fast_encode` and `moe.fast_decode` move the rows, `net.all_to_all` exchanges them. Parameters, dropout
and losses are the layer's own, so a checkpoint knows nothing of the backend.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from swin_moe.errors import ModelError, require
from swin_moe.moe.backends.base import ExpertLayer, ExpertOutput, RoutedTokens
from swin_moe.moe.routers.base import Routing, RoutingRequest
from swin_moe.random.keyed import fold_in

INSTALL = (
    "pip install --no-build-isolation "
    "git+https://github.com/microsoft/tutel@ac0e51b943bb7084d4a6a7243e44a4afe04b9911"
)


def import_tutel() -> tuple[ModuleType, ModuleType]:
    """`tutel.moe` and `tutel.net`.

    Raises:
        ModelError: Tutel does not import; the message has the command that installs it.
    """
    try:
        from tutel import moe, net  # type: ignore[import-not-found]
    except ImportError as error:
        raise ModelError(f"model.moe.backend=tutel: Tutel does not import ({error}): {INSTALL}") from error
    return moe, net


def run_tutel(layer: ExpertLayer, routed: RoutedTokens) -> ExpertOutput:
    """Dispatch, exchange, experts, combine by Tutel.

    Each routing group is decided on its own, as in every backend; all of them travel in one exchange.

    Args:
        layer: with unsliced experts, the same number on every rank.
        routed: by a softmax router.

    Raises:
        ModelError: Tutel is not installed, or cannot do what the layer or the request needs.
    """
    tokens, keys, routing, request, _ = routed
    assert isinstance(routing, Routing)
    _check(layer, request)
    moe, net = import_tutel()

    # dispatch
    group, groups = layer.placement.group, request.groups
    decided = [_decide(moe, layer, routing, g) for g in range(groups)]
    location = torch.cat([torch.stack(one[2], dim=1) for one in decided]).long()  # (T, k)
    slots = request.slots if request.factor > 0 else _slots_in_use(net, location, request.slots, group)
    decided = [(*one[:4], slots, one[5]) for one in decided]

    wide = tokens.to(routing.gates.dtype).contiguous().chunk(groups)  # Tutel's kernels are fp32 on the CPU
    rows = torch.cat([moe.fast_encode(x, one) for x, one in zip(wide, decided, strict=True)], dim=1)

    # exchange
    rows = _exchange(net, rows.to(tokens.dtype), 1, 0, group)  # (E, M, C) -> (L, R * M, C)
    counts = [rows.shape[1]] * rows.shape[0]
    row_keys = None
    if layer.training and layer.experts.dropout.rate > 0:
        sent = _row_keys(keys, routing, location, groups, slots)  # (E, M, 1)
        row_keys = _exchange(net, sent, 1, 0, group).flatten()

    # experts
    experts = layer.experts
    answers = experts(experts.weights(), rows.flatten(0, 1), counts, row_keys, layer.placement.part)

    # exchange back, and combine
    answers = _exchange(net, answers.view_as(rows), 0, 1, group).to(routing.gates.dtype)  # (E, M, C)
    pieces = zip(answers.split(slots, dim=1), decided, strict=True)
    y = torch.cat([moe.fast_decode(piece.contiguous(), one) for piece, one in pieces])  # (T, C)

    wanted = routing.expert_index.flatten()
    load = wanted.new_zeros(routing.num_experts).scatter_add_(0, wanted, torch.ones_like(wanted))
    received = torch.full((), sum(counts), dtype=torch.int64, device=tokens.device)
    kept = location < slots
    return ExpertOutput(y=y.to(tokens.dtype), load=load, dropped=(~kept).sum(), received=received, kept=kept)


def _check(layer: ExpertLayer, request: RoutingRequest) -> None:
    """Refuse what Tutel cannot do; capacity and top_k are those of this forward pass."""
    placement = layer.placement
    require(
        request.factor > 0 or not layer.config.batch_prioritized,
        f"model.moe.backend=tutel with model.moe.batch_prioritized and a capacity factor ({request.factor}) "
        "<= 0 would drop tokens silently: Tutel takes the capacity from the last token; set a factor above "
        "0, batch_prioritized=false or backend=native",
    )
    require(
        request.slots > 0,
        f"model.moe.backend=tutel with a capacity factor of {request.factor} leaves an expert no slot, which "
        "Tutel cannot do; set a larger factor or backend=native",
    )
    require(
        placement.part.of == 1 and placement.num_experts % placement.ep_size == 0,
        f"model.moe.backend=tutel needs whole experts, as many on every rank: parallel.ep_size "
        f"({placement.ep_size}) must divide model.moe.num_experts ({placement.num_experts}), and "
        f"parallel.expert_tensor_parallel_size ({placement.part.of}) must be 1; or set backend=native",
    )


def _decide(moe: ModuleType, layer: ExpertLayer, routing: Routing, group: int) -> tuple[Any, ...]:
    """Tutel's decision about one routing group, with the router's own gates.

    extract_critical sees scores that say no more than the router's choices and their order, all of them
    distinct: choice j of the token with rank r in the priority order gets k - j + 1 - r / S. So ties fall as
    in every backend, and scores that underflow to 0 lose no choice. The capacity comes later: for a factor
    <= 0 Tutel would take a maximum over all ranks where the layer has no expert group.
    """
    size, top_k = routing.priority.shape[2], routing.expert_index.shape[1]
    mine = slice(group * size, (group + 1) * size)
    device = routing.gates.device
    token = routing.priority[group, 0] // top_k - group * size  # (S,) of the group, highest priority first
    rank = torch.empty(size, device=device)
    rank[token] = torch.arange(size, device=device) / size
    wish = torch.arange(top_k, 0, -1, device=device) + 1 - rank[:, None]  # (S, k)
    scores = torch.zeros(size, routing.num_experts, device=device)
    scores.scatter_(1, routing.expert_index[mine], wish)
    decided, _ = moe.extract_critical(
        scores,
        top_k,
        loss_fn=None,
        batch_prioritized_routing=layer.config.batch_prioritized,
        normalize_gate=False,
    )
    experts, choices, locations, _, _, last = decided
    return experts, choices, locations, list(routing.gates[mine].t().contiguous()), 0, last


def _slots_in_use(net: ModuleType, location: Tensor, most: int, group: Any) -> int:
    """Slots that the fullest expert of the fullest rank needs, at most `most`; waits for the device."""
    used = location.max() + 1
    if group is not None:
        used = net.simple_all_reduce(used, group=group, op=torch.distributed.ReduceOp.MAX)
    return min(int(used), most)


def _exchange(net: ModuleType, rows: Tensor, split_dim: int, gather_dim: int, group: Any) -> Tensor:
    """Tutel's all-to-all, which takes a group of None for the whole world; here it is this rank alone."""
    return rows if group is None else net.all_to_all(rows, split_dim, gather_dim, group=group)


def _row_keys(keys: Tensor, routing: Routing, location: Tensor, groups: int, slots: int) -> Tensor:
    """Dropout keys of the rows, as the native plan gives them, 0 for empty rows: (E, M, 1)."""
    tokens, top_k = routing.expert_index.shape
    of_choice = fold_in(keys[:, None], torch.arange(top_k, device=keys.device))  # (T, k)
    group = torch.arange(tokens, device=keys.device)[:, None] // (tokens // groups)
    row = (routing.expert_index * groups + group) * slots + location
    rows = routing.num_experts * groups * slots
    row = row.where(location < slots, rows)  # the dropped ones share a row that is thrown away
    spread = keys.new_zeros(rows + 1).scatter_(0, row.flatten(), of_choice.flatten())
    return spread[:-1].view(routing.num_experts, -1, 1)
