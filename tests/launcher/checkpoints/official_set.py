"""What an official Swin-MoE run of 8 ranks saves after an epoch: weights, AdamW's state and the epoch.

The optimizer is torch's own, its groups are the official ones, and the parameters stand in the order of the
official modules: so the numbers in its state mean what they mean there.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swin_moe import ModelConfig, build_model, save_weights
from swin_moe.weights.official import convert

RANKS, UPDATES = 8, 3
BLOCK = """
norm1.weight norm1.bias attn.cpb_mlp.0.weight attn.cpb_mlp.0.bias attn.cpb_mlp.2.weight
attn.qkv.weight attn.qkv.bias attn.proj.weight attn.proj.bias norm2.weight norm2.bias
"""
DENSE = "mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight"
EXPERTS = """
mlp._moe_layer.experts.batched_fc1_w mlp._moe_layer.experts.batched_fc2_w
mlp._moe_layer.experts.batched_fc1_bias mlp._moe_layer.experts.batched_fc2_bias
mlp._moe_layer.gates.0.wg.weight
"""
KEYWORDS = ("cpb_mlp", "logit_scale", "fc1_bias", "fc2_bias", "temperature", "cosine_projector", "sim_matrix")


def names_in_order(config: ModelConfig) -> list[str]:
    """Every parameter, as the official modules register them."""
    names = [
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "patch_embed.norm.weight",
        "patch_embed.norm.bias",
    ]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            mlp = EXPERTS if config.is_moe_block(stage, block) else DENSE
            names += [f"layers.{stage}.blocks.{block}.{leaf}" for leaf in (BLOCK + mlp).split()]
        if stage + 1 < len(config.depths):
            leaves = ("reduction.weight", "norm.weight", "norm.bias")
            names += [f"layers.{stage}.downsample.{leaf}" for leaf in leaves]
    return [*names, "norm.weight", "norm.bias", "head.weight", "head.bias"]


def trained(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Some steps of the official optimizer on gradients that follow from a parameter's name alone."""
    parameters = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
    plain, decay = [], []
    for name, parameter in parameters.items():
        if "batched_fc2_bias" in name:
            continue  # frozen, as MLP_FC2_BIAS=False says
        skipped = parameter.dim() == 1 or name.endswith(".bias") or any(word in name for word in KEYWORDS)
        (plain if skipped else decay).append(parameter)
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0.0}], lr=1e-3)
    for step in range(UPDATES):
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                parameter.grad = gradient(name, parameter, step)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}, optimizer.state_dict()


def gradient(name: str, weight: Tensor, step: int) -> Tensor:
    """A function of the weight's elements, so that a slice's gradient is the slice of the whole one's."""
    return torch.sin(weight * (3 + len(name) % 7 + step)) * 0.1 + 0.01 * step


def piece(name: str, whole: Tensor, rank: int, experts: int) -> Tensor:
    """What a rank holds of the tensor of all experts: whole ones, or a slice of the hidden units of one."""
    if "_moe_layer.experts." not in name:
        return whole
    if experts >= RANKS:
        return whole[rank * experts // RANKS : (rank + 1) * experts // RANKS]
    slices = RANKS // experts
    own = whole[rank // slices : rank // slices + 1]
    width = own.shape[1] // slices
    return own[:, rank % slices * width : (rank % slices + 1) * width]


@dataclass(frozen=True, kw_only=True)
class Official:
    """Such a set on disk, and what it must become under our names."""

    path: Path  # NAME.pth
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # by kind


def save_set(config: ModelConfig, folder: Path, *, epoch: int = 0) -> Official:
    """Write NAME.pth.rank0 ... rank7 of a model with random weights."""
    assert config.moe is not None
    save_weights(build_model(config, seed=11), folder / "start.pth", "official")
    start = torch.load(folder / "start.pth")["model"]
    names = names_in_order(config)
    buffers = {name: tensor for name, tensor in start.items() if name not in names}
    assert all(re.search(r"relative_(position_index|coords_table)$", name) for name in buffers)
    for rank in range(RANKS):
        own = {name: piece(name, start[name], rank, config.moe.num_experts).clone() for name in names}
        weights, optimizer = trained(own)
        content = {"model": buffers | weights, "optimizer": optimizer, "epoch": epoch, "max_accuracy": 37.5}
        torch.save(content, folder / f"ckpt_epoch_{epoch}.pth.rank{rank}")
    weights, optimizer = trained({name: start[name] for name in names})
    return Official(
        path=folder / f"ckpt_epoch_{epoch}.pth",
        weights=ours(weights),
        moments={kind: ours(moments_of(weights, optimizer, kind)) for kind in ("exp_avg", "exp_avg_sq")},
    )


def save_one(config: ModelConfig, folder: Path, *, epoch: int) -> Official:
    """Write NAME.pth of a dense model; its parameters stand in our order, in weights and optimizer alike."""
    save_weights(build_model(config, seed=11), folder / "start.pth", "official")
    start = torch.load(folder / "start.pth")["model"]
    buffers = {name: tensor for name, tensor in start.items() if ".relative_" in name}
    weights, optimizer = trained({name: start[name] for name in start if name not in buffers})
    path = folder / "dense.pth"
    torch.save({"model": weights | buffers, "optimizer": optimizer, "epoch": epoch}, path)
    moments = {kind: ours(moments_of(weights, optimizer, kind)) for kind in ("exp_avg", "exp_avg_sq")}
    return Official(path=path, weights=ours(weights), moments=moments)


def moments_of(weights: dict[str, Tensor], optimizer: dict[str, Any], kind: str) -> dict[str, Tensor]:
    """Moments by name: the numbers count those with decay, then those without."""
    names = [name for name in weights if "batched_fc2_bias" not in name]
    plain = [
        n for n in names if weights[n].dim() == 1 or n.endswith(".bias") or any(k in n for k in KEYWORDS)
    ]
    in_order = [name for name in names if name not in plain] + plain
    return {name: optimizer["state"][number][kind] for number, name in enumerate(in_order)}


def ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under our names, without the fc2 bias that our model does not have."""
    return {n: t for n, t in convert(tensors).tensors.items() if not n.endswith(".experts.fc2_bias")}
