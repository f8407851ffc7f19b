"""A dense model's weights for one with experts: every expert begins as the MLP that it replaces.

Komatsuzaki et al. 2023. Where gates are normalised and no token is dropped, the answers of
equal experts weighted by gates that sum to 1 are the dense MLP's own, so training starts where it stood.
"""

import hashlib
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from swin_moe.moe_config import MoEConfig
from swin_moe.weights.converted import ConvertedStateDict
from swin_moe.weights.errors import WeightsError

_EXPERT = re.compile(r"(.*\.mlp\.)experts\.(\d+)\.(fc1|fc2)_(weight|bias)")


def upcycle(
    converted: ConvertedStateDict,
    shapes: Mapping[str, list[int]],
    moe: MoEConfig,
    *,
    noise: float,
    seed: int = 0,
) -> tuple[list[str], set[str]]:
    """Put the MLPs of dense weights in the place of the experts that the model has there.

    Args:
        converted: the weights; changed in place.
        shapes: of the model's tensors, by global name.
        moe: of the model.
        noise: standard deviation of the noise on each expert's matrices, as a fraction of their own.
        seed: of the noise.

    Returns:
        What was done, and the names of the routers' tensors, which are the model's own.

    Raises:
        WeightsError: the weights have experts already, or the model's are no plain MLPs.
    """
    if any(_EXPERT.fullmatch(name) for name in converted.tensors):
        raise WeightsError("these weights have experts already: leave out train.upcycle_noise")
    if moe.expert_activation != "gelu" or moe.shared_expert:
        raise WeightsError(
            "train.upcycle_noise needs experts that are the dense model's MLPs: set "
            "model.moe.expert_activation=gelu and model.moe.shared_expert=false"
        )
    dense: dict[str, Tensor] = {}
    for name in shapes:
        if match := _EXPERT.fullmatch(name):
            layer, _, linear, kind = match.groups()
            source = f"{layer}{linear}.{kind}"
            if source in converted.tensors:
                dense[source] = converted.tensors[source]
                converted.put(name, converted.names[source], _expert(dense[source], name, noise, seed))
    for source in dense:
        del converted.tensors[source], converted.names[source]
    layers = {source.split(".mlp.")[0] for source in dense}
    routers = {name for name in shapes if any(name.startswith(f"{layer}.mlp.router.") for layer in layers)}
    spread = f" with {noise:g} of noise" if noise else ""
    return [_report(moe, len(layers), spread)], routers


def _report(moe: MoEConfig, layers: int, spread: str) -> str:
    line = f"upcycled: {moe.num_experts} experts from each of {layers} MLPs{spread}, routers fresh"
    if not moe.normalize_gates:
        line += "; without model.moe.normalize_gates the answers are the gates' share of the dense model's"
    return line


def _expert(dense: Tensor, name: str, noise: float, seed: int) -> Tensor:
    """One expert's tensor; its matrices are the transposes of a linear layer's."""
    if dense.dim() == 1:
        return dense.clone()
    expert = dense.t().contiguous()
    if noise:
        digest = hashlib.sha256(f"{seed}/upcycle/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        expert = expert + noise * expert.std() * torch.randn(expert.shape, generator=generator)
    return expert
