"""A small MoE layer, and its comparison with the plain loops of plain_moe.py."""

import torch
from torch import Tensor

from swin_moe.moe.backends import BACKENDS
from swin_moe.moe.layer import MoELayer
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import sample_keys
from tests.models import moe_layer, randn
from tests.swin_moe.moe.backends.reference import run_reference
from tests.swin_moe.moe.plain_moe import Asked, Reference, reference

BACKENDS["reference"] = run_reference
IMAGES, LENGTH, DIM, HIDDEN, EXPERTS, GROUP = 6, 5, 4, 6, 4, 2
TOP_K_ROUTERS = ("linear", "cosine", "sigmoid")


def make_layer(*, dtype: torch.dtype = torch.float64, fc2_bias: bool = True, **options: object) -> MoELayer:
    """Three routing groups of 2 images, 10 tokens each; weights large enough to route decisively."""
    quiet = {"gate_noise": 0.0, "expert_dropout": 0.0, "routing_group_images": GROUP, "num_experts": EXPERTS}
    if options.get("router", "linear") in TOP_K_ROUTERS:
        quiet["balance_loss"] = "gshard"
    config = MoEConfig(blocks=(), **(quiet | options))
    layer = moe_layer(config, dim=DIM, hidden=HIDDEN, fc2_bias=fc2_bias)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        if config.router == "sigmoid":  # in units of .001: enough to change choices
            layer.router.bias_steps.copy_(torch.tensor([300, -200, 100, 0]).repeat(4)[: config.num_experts])
    return layer.to(dtype)


def make_images(dtype: torch.dtype = torch.float64, images: int = IMAGES, seed: int = 7) -> Tensor:
    return randn(images, LENGTH, DIM, seed=seed).to(dtype).requires_grad_()


def keys_of(images: int = IMAGES) -> Tensor:
    return sample_keys(1, torch.arange(images))


def gradients(y: Tensor, loss: Tensor | float, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a random weighting of the outputs plus 3 times the loss."""
    cotangent = randn(*y.shape, seed=3).to(y.dtype)
    total = (y * cotangent).sum() + 3.0 * loss
    if not total.requires_grad:  # everything was dropped
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def compare(
    layer: MoELayer,
    x: Tensor,
    *,
    factor: float,
    group_images: int,
    tolerance: float,
    call: RoutingOverrides | None = None,
) -> Reference:
    """Outputs, loss, counts and all gradients of the layer and of the loops."""
    y, stats = layer(x, keys_of(len(x)), call)
    top_k = layer.config.top_k if call is None or call.top_k is None else call.top_k
    asked = Asked(factor=factor, group_images=group_images, top_k=top_k)
    expected = reference(x, layer, keys_of(len(x)), asked)
    torch.testing.assert_close(y, expected.y, rtol=tolerance, atol=tolerance)
    wanted_loss = torch.as_tensor(expected.loss, dtype=stats.loss.dtype)
    torch.testing.assert_close(stats.loss, wanted_loss, rtol=tolerance, atol=tolerance)
    assert stats.load.tolist() == expected.load
    assert stats.dropped.item() == expected.dropped
    inputs = [x, *layer.parameters()]
    names = ["x", *(name for name, _ in layer.named_parameters())]
    got, wanted = gradients(y, stats.loss, inputs), gradients(expected.y, expected.loss, inputs)
    for name, a, b in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    return expected
