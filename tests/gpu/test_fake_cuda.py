"""Forward passes of every family and router on fake "cuda" tensors: a mix of devices is an error.

No GPU is needed: the tensors have a device and a shape, and no memory.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves

import swin_moe
from parallel.experts.exchange import ExchangeOptions
from swin_moe.heads.classification import classification_loss, evaluation_sums
from swin_moe.heads.simmim import build_simmim
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.recipes import load_model_config
from tests.gpu.fakes import place

MOE_S = "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"
FAMILIES = [
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_patch4_window8_256",
    "swin_mlp_tiny_c6_patch4_window8_256",
]
SMALL: dict[str, Any] = {"num_classes": 10, "embed_dim": 32, "num_heads": (1, 2)}
PADDED = RoutingOverrides(exchange=ExchangeOptions(padded=True))
CHANCE = {"gate_noise": 0.0, "load_balance_weight": 0.0, "balance_loss": "auto", "batch_prioritized": False}
ROUTERS: dict[str, tuple[dict[str, Any], RoutingOverrides | None]] = {
    "linear": ({}, None),
    "dropless": ({"capacity_factor": 0.0, "batch_prioritized": False}, None),
    "padded": ({}, PADDED),
    "two": ({"top_k": 2}, PADDED),
    "cosine": ({"router": "cosine"}, None),
    "sigmoid": ({"router": "sigmoid", "gate_noise": 0.0, "balance_loss": "gshard"}, None),
    "soft": ({"router": "soft", **CHANCE}, None),
    "hash": ({"router": "hash", **CHANCE}, None),
    "random": ({"router": "random", **CHANCE}, None),
    "swiglu": ({"expert_activation": "swiglu", "recompute_activation": True}, None),
    "shared": ({"shared_expert": True}, None),
}
WHOLE = ("swin_tiny_patch4_window7_224", "linear", "dropless", "soft")  # of these every way is a default test


def in_every_way(names: Iterable[str]) -> list[Any]:
    """(name, dtype, training); by default each name trains in bf16, and some do all else."""
    ways = [(dtype, training) for dtype in (torch.bfloat16, torch.float32) for training in (True, False)]
    return [
        pytest.param(
            name,
            *way,
            marks=[] if name in WHOLE or way == ways[0] else [pytest.mark.slow],
            id="-".join(
                [name, "bf16" if way[0] == torch.bfloat16 else "fp32", "train" if way[1] else "eval"]
            ),
        )
        for name in names
        for way in ways
    ]


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU with grouped products; without a CUDA build of torch there is no autograd of its tensors."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with torch.set_grad_enabled(torch.version.cuda is not None):
        yield


def on_fake_cuda(
    model: nn.Module, dtype: torch.dtype, run: Callable[[Tensor, Tensor], Any], side: int
) -> None:
    """Run a model on fake images and keys; all that it returns is on the GPU."""
    shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(allow_non_fake_inputs=False, shape_env=shapes):
        place(model, "cuda", dtype)
        images = torch.empty(2, 3, side, side, device="cuda")
        found = run(images, torch.zeros(2, dtype=torch.int64, device="cuda"))
        assert {x.device.type for x in tree_leaves(found) if isinstance(x, Tensor)} == {"cuda"}


@pytest.mark.parametrize(("name", "dtype", "training"), in_every_way(FAMILIES))
def test_families(name: str, dtype: torch.dtype, training: bool) -> None:
    model = swin_moe.build_model(name, **SMALL, depths=(2, 1), drop_rate=0.1).train(training)

    def run(images: Tensor, keys: Tensor) -> Any:
        output = model(images, keys)
        labels, weights = torch.zeros_like(keys), torch.ones(2, device="cuda")
        loss = classification_loss(output.logits, labels, 0.1)
        return output, output.aux_loss, loss, evaluation_sums(output.logits, labels, weights)

    on_fake_cuda(model, dtype, run, model.config.image_size)


@pytest.mark.parametrize(("router", "dtype", "training"), in_every_way(ROUTERS))
def test_routers(router: str, dtype: torch.dtype, training: bool) -> None:
    """Products of fp32 are a loop over experts, which reads their counts: these are padded."""
    moe, call = ROUTERS[router]
    if dtype == torch.float32:
        if "capacity_factor" in moe:
            pytest.skip("dropless experts in fp32 read how many rows they have")
        if TorchVersion(torch.__version__) < "2.12":
            pytest.skip("fake tensors of torch 2.11 cannot be split by sizes that were read from the device")
        call = PADDED
    moe = {"routing_group_images": 2, "blocks": [[], [1]], **moe}
    model = swin_moe.build_model(MOE_S, **SMALL, depths=(1, 2), moe=moe).train(training)
    on_fake_cuda(model, dtype, lambda images, keys: model(images, keys, call), 192)


@pytest.mark.parametrize("window", [0, 47])
def test_simmim(window: int) -> None:
    config = load_model_config(FAMILIES[window > 0], **SMALL, depths=(1, 1))
    model = build_simmim(config, SimMIMConfig(norm_target_window=window)).train()

    def run(images: Tensor, keys: Tensor) -> Any:
        output = model(images, keys)
        return output, output.aux_loss, model.fill_in(output, images)

    on_fake_cuda(model, torch.bfloat16, run, config.image_size)


@pytest.mark.parametrize("change", [{"activation_checkpoint_every": 1}, {"attention_chunk": 4}], ids=str)
def test_less_memory(change: dict[str, int]) -> None:
    model = swin_moe.build_model(FAMILIES[1], **SMALL, depths=(1, 2), **change).train()
    on_fake_cuda(model, torch.bfloat16, model, 256)


def test_another_size() -> None:
    model = swin_moe.build_model(FAMILIES[1], **SMALL, depths=(1, 2)).eval()
    on_fake_cuda(model, torch.bfloat16, model, 200)
