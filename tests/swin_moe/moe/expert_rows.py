"""Small expert MLPs, and what they compute one row after another under autograd."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallel.experts.placement import ExpertParallel, ExpertSlice
from swin_moe.moe.experts import ExpertMLP
from swin_moe.random.keyed import fold_in, keep_mask, sample_keys

C, H, SITE = 4, 6, 7
WHOLE = ExpertSlice()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def mlp(
    *,
    experts: int = 3,
    dim: int = C,
    hidden: int = H,
    part: ExpertSlice = WHOLE,
    activation: Any = "gelu",
    dropout: float = 0.0,
    fc2_bias: bool = True,
    recompute: bool = False,
) -> ExpertMLP:
    """Experts whose weights are drawn; a part has the columns of the whole."""
    placement = ExpertParallel(num_experts=experts, local_experts=range(experts), part=part)
    layer = ExpertMLP(
        dim,
        hidden,
        placement,
        activation=activation,
        dropout=dropout,
        fc2_bias=fc2_bias,
        recompute=recompute,
        site=SITE,
    ).double()
    for seed, (name, parameter) in enumerate(layer.named_parameters()):
        shape, sliced = list(parameter.shape), getattr(layer, name).sliced
        if sliced is not None:
            shape[sliced.dim] = sliced.size
        whole = draw(*shape, seed=seed) / math.sqrt(shape[1])
        parameter.data.copy_(whole if sliced is None else sliced.take(whole))
    return layer


def run(layer: ExpertMLP, rows: Tensor, counts: list[int], part: ExpertSlice = WHOLE) -> Tensor:
    return layer(layer.weights(), rows, counts, keys_of(rows), part)


def keys_of(rows: Tensor) -> Tensor:
    return sample_keys(3, torch.arange(len(rows)))


def row_by_row(layer: ExpertMLP, rows: Tensor, counts: list[int]) -> Tensor:
    """Each row by the expert that owns it, in the words of the definition."""
    owner = [expert for expert, count in enumerate(counts) for _ in range(count)]
    keep = keep_mask(fold_in(keys_of(rows), SITE), layer.hidden, layer.dropout.rate)
    answers = []
    for row, e, kept in zip(rows, owner, keep, strict=True):
        hidden = row @ layer.fc1_weight[e] + layer.fc1_bias[e]
        if layer.gate_weight is None:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        else:
            gate = row @ layer.gate_weight[e] + layer.gate_bias[e]
            hidden = hidden * gate / (1 + torch.exp(-gate))
        if layer.training:
            hidden = hidden * kept / (1 - layer.dropout.rate)
        answer = hidden @ layer.fc2_weight[e]
        answers.append(answer if layer.fc2_bias is None else answer + layer.fc2_bias[e])
    return torch.stack(answers) if answers else rows[:, :0] @ rows.new_zeros(0, rows.shape[1])


def gradients(y: Tensor, layer: ExpertMLP, rows: Tensor) -> list[Tensor]:
    wanted = [rows, *layer.weights()]
    cotangent = draw(*y.shape, seed=99, dtype=y.dtype)
    return list(torch.autograd.grad(y, wanted, cotangent, allow_unused=True, materialize_grads=True))


def assert_equal(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, check_dtype=False)


OPTIONS = [
    {"activation": activation, "dropout": dropout, "recompute": recompute, "fc2_bias": fc2_bias}
    for activation in ("gelu", "swiglu")
    for dropout in (0.0, 0.4)
    for recompute in (False, True)
    for fc2_bias in ((True, False) if activation == "gelu" and not recompute else (True,))
]


def name_of(value: object) -> str:
    return "-".join(str(item) for item in value.values()) if isinstance(value, dict) else str(value)


def kept_bytes(f: Callable[[], Tensor], inputs: Sequence[Tensor]) -> int:
    """Bytes that are saved for backward, besides the weights, each tensor once."""
    kept: dict[int, int] = {}
    own = {x.data_ptr() for x in inputs}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        f()
    return sum(kept.values())
