"""A frozen classifier gives the logits of the model that it copies: families, routers, precisions."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from swin_moe.backbone.model import SwinTransformer, build_model
from swin_moe.backbone.position_bias import PositionBias
from swin_moe.errors import ModelError
from swin_moe.frozen.model import FrozenClassifier
from swin_moe.frozen.products import ExpertProducts
from swin_moe.moe.overrides import RoutingOverrides
from tests.models import V2, randomize, small_moe, small_swin

PRODUCTS: tuple[ExpertProducts, ...] = ("dense", "gathered", "grouped")
EXACT = RoutingOverrides(capacity_factor=0.0)


def model_of(**changes: Any) -> SwinTransformer:
    return randomize(build_model(small_swin(**changes))).eval()


def images(model: SwinTransformer, number: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(number, 3, *model.config.image_sides, generator=generator)


@torch.no_grad()
def logits(model: SwinTransformer, x: Tensor, call: RoutingOverrides | None = None) -> Tensor:
    return model(x, torch.zeros(len(x), dtype=torch.int64), call).logits.float()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        V2,
        {"position_bias": "log_cpb"},
        {"attention": "mlp"},
        {"image_size": (40, 28)},  # maps that are padded to whole windows
        {"image_size": (40, 28), **V2},
        {"image_size": (40, 28), "window_padding": "visible"},
        {"image_size": (40, 28), "window_padding": "visible", **V2},
        {"qkv_bias": False},
        {"qkv_bias": False, **V2},
        {"attention_chunk": 4},
        {"extra_norm_period": 2, **V2},
        {"activation_checkpoint_every": 1},
    ],
    ids=str,
)
def test_dense_models(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    frozen = FrozenClassifier(model)
    x = images(model)
    with torch.no_grad():
        features = model.forward_pooled(x, torch.zeros(3, dtype=torch.int64))[0]
    torch.testing.assert_close(frozen(x)[0], logits(model, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen(x)[1], features, rtol=1e-5, atol=1e-5)
    assert len(frozen(x)) == 2
    assert not any(isinstance(module, PositionBias) for module in frozen.modules())
    assert all(buffer.isfinite().all() for buffer in frozen.buffers())
    assert not frozen(x)[0].requires_grad


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize(
    "moe",
    [
        {},
        {"top_k": 2},
        {"top_k": 2, "normalize_gates": True},
        {"router": "cosine", "top_k": 2},
        {"router": "sigmoid", "top_k": 2},
        {"router": "hash", "top_k": 2},
        {"router": "soft", "slots_per_expert": 2},
        {"expert_activation": "swiglu", "top_k": 2},
        {"shared_expert": True},
        {"batch_prioritized": True, "eval_capacity_factor": 0.5},  # a frozen model drops nothing
    ],
    ids=str,
)
def test_models_with_experts(moe: dict[str, Any], products: ExpertProducts) -> None:
    model = model_of(moe=small_moe(**moe))
    frozen = FrozenClassifier(model, products)
    x = images(model, 4)
    torch.testing.assert_close(frozen(x)[0], logits(model, x, EXACT), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        stats = model(x, torch.zeros(4, dtype=torch.int64), EXACT).moe
    for index, layer in zip(frozen(x)[2:], stats.values(), strict=True):
        assert index.shape[0] == 4
        if moe.get("router") != "soft":
            assert torch.equal(index.flatten().bincount(minlength=4), layer.load)


@pytest.mark.parametrize("products", ["dense", "gathered"])
def test_experts_that_choose_among_the_tokens_of_an_image(products: ExpertProducts) -> None:
    moe = small_moe(router="expert_choice", routing_group_images=1, eval_capacity_factor=0.75)
    model = model_of(moe=moe)
    x = images(model)
    torch.testing.assert_close(
        FrozenClassifier(model, products)(x)[0], logits(model, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("moe", "option"),
    [
        ({"router": "random"}, "model.moe.router"),
        ({"router": "expert_choice", "eval_capacity_factor": 1.0}, "model.moe.routing_group_images"),
    ],
    ids=str,
)
def test_a_router_without_an_answer_for_one_image_is_refused(moe: dict[str, Any], option: str) -> None:
    with pytest.raises(ModelError, match=option):
        FrozenClassifier(model_of(moe=small_moe(**moe)))


def test_a_model_of_clips_is_refused() -> None:
    with pytest.raises(ModelError, match=r"a model of clips \(model.frames=4\) cannot be frozen"):
        FrozenClassifier(model_of(frames=4))


@pytest.mark.parametrize("products", PRODUCTS)
def test_an_answer_does_not_depend_on_the_batch(products: ExpertProducts) -> None:
    model = model_of(moe=small_moe(top_k=2))
    frozen = FrozenClassifier(model, products)
    x = images(model, 32)
    together = frozen(x)[0]
    for batch in (1, 8):
        apart = torch.cat([frozen(piece)[0] for piece in x.split(batch)])
        torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("changes", [{}, V2, {"moe": small_moe(top_k=2)}], ids=str)
def test_half_precision(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = model_of(**changes).to(dtype)
    x = images(model)
    torch.testing.assert_close(FrozenClassifier(model)(x)[0], logits(model, x, EXACT), rtol=0.05, atol=0.05)


def test_the_model_is_copied() -> None:
    model = model_of(moe=small_moe())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = FrozenClassifier(model)
    for parameter in frozen.parameters():
        parameter.zero_()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"moe": small_moe(blocks=((0,),), num_experts=9, top_k=2)}], ids=str)
def test_it_is_compiled_once_for_all_batches(changes: dict[str, Any]) -> None:
    """As one graph, for a first batch and then for any other; more experts than torch compiles parts of."""
    model = model_of(image_size=8, depths=(1,), num_heads=(2,), window_size=2, **changes)
    frozen, counter = FrozenClassifier(model), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(frozen, backend=counter, fullgraph=True)
    for number in (1, 4, 9, 6):
        with torch.compiler.set_stance("default" if number in (1, 4) else "fail_on_recompile"):
            x = images(model, number)
            torch.testing.assert_close(compiled(x), frozen(x))
    assert counter.frame_count == 2


@pytest.mark.parametrize("changes", [V2, {"moe": small_moe(top_k=2)}], ids=str)
def test_an_exported_program_takes_any_batch(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    frozen = FrozenClassifier(model)
    batch = torch.export.Dim("batch", min=1, max=32)
    program = torch.export.export(frozen, (images(model, 2),), dynamic_shapes=({0: batch},)).module()
    for number in (1, 5):
        x = images(model, number)
        torch.testing.assert_close(program(x)[0], logits(model, x, EXACT), rtol=1e-5, atol=1e-5)
